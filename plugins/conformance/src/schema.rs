//! D1: the JSON Schema of a mechanism's settings, as far as it must be understood to try the settings out.

use serde_json::{Map, Value, json};

/// A mechanism's `config_schema`; without one it has no settings.
#[derive(Debug, Default)]
pub struct Schema {
    properties: Map<String, Value>,
    required: Vec<String>,
    examples: Vec<Value>,
}

/// The types that JSON Schema knows.
const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "array", "object", "null"];
/// A key that no mechanism has.
const UNKNOWN: &str = "portreeve_check_unknown_key";

/// Reads a schema; the error says what is wrong with it.
pub fn read(text: Option<&str>) -> Result<Schema, String> {
    let Some(text) = text else { return Ok(Schema::default()) };
    let all: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    if all["type"] != "object" {
        return Err("has not \"type\": \"object\"".into());
    }
    let properties = match all.get("properties") {
        None => Map::new(),
        Some(Value::Object(properties)) => properties.clone(),
        Some(_) => return Err("has `properties` that are no object".into()),
    };
    for (name, property) in &properties {
        check_property(name, property)?;
    }
    let mut required = Vec::new();
    for name in all["required"].as_array().into_iter().flatten() {
        match name.as_str().filter(|name| properties.contains_key(*name)) {
            Some(name) => required.push(name.to_owned()),
            None => return Err(format!("requires {name}, which is no property")),
        }
    }
    if !matches!(all.get("required"), None | Some(Value::Array(_))) {
        return Err("has `required` that is no array".into());
    }
    let examples = all["examples"].as_array().cloned().unwrap_or_default();
    let schema = Schema { properties, required, examples };
    for name in &schema.required {
        if schema.example(name).is_none() && schema.examples.is_empty() {
            return Err(format!("requires {name:?} and has no example of it (`examples` or `default`)"));
        }
    }
    Ok(schema)
}

fn check_property(name: &str, property: &Value) -> Result<(), String> {
    if !property.is_object() {
        return Err(format!("describes {name:?} by something that is no object"));
    }
    let types = match &property["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(some) => some.iter().map(|one| one.as_str().unwrap_or("?")).collect(),
        Value::Null if property.get("enum").is_some() || property.get("const").is_some() => vec![],
        _ => return Err(format!("gives {name:?} no type")),
    };
    match types.iter().find(|one| !TYPES.contains(one)) {
        Some(unknown) => Err(format!("gives {name:?} the type {unknown:?}, which is none")),
        None => Ok(()),
    }
}

impl Schema {
    /// Whether no setting is described.
    pub fn is_empty(&self) -> bool {
        self.properties.is_empty()
    }

    fn example(&self, name: &str) -> Option<Value> {
        let property = self.properties.get(name)?;
        let first = |key: &str| property[key].as_array().and_then(|list| list.first()).cloned();
        first("examples").or_else(|| property.get("default").cloned()).or_else(|| first("enum"))
    }

    /// Settings that should do: the first example, or what is required.
    pub fn working(&self) -> String {
        match self.examples.first() {
            Some(example) => example.to_string(),
            None => Value::Object(self.of(self.required.iter().map(String::as_str))).to_string(),
        }
    }

    fn of<'a>(&'a self, names: impl Iterator<Item = &'a str>) -> Map<String, Value> {
        names.filter_map(|name| Some((name.to_owned(), self.example(name)?))).collect()
    }

    /// Tries settings that must be taken, and one that must be refused.
    pub fn try_out(
        &self,
        given: Option<&str>,
        configure: &mut dyn FnMut(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        let every = Value::Object(self.of(self.properties.keys().map(String::as_str))).to_string();
        let examples = self.examples.iter().map(Value::to_string);
        let good: Vec<String> = match given {
            Some(given) => vec![given.to_owned()],
            None => [self.working(), every].into_iter().chain(examples).collect(),
        };
        for settings in &good {
            configure(settings).map_err(|cause| format!("configure() refuses its own example {settings}: {cause}"))?;
        }
        let mut unknown: Map<String, Value> =
            good.first().and_then(|settings| serde_json::from_str(settings).ok()).unwrap_or_default();
        unknown.insert(UNKNOWN.into(), json!(1));
        match configure(&Value::Object(unknown).to_string()) {
            Ok(()) => Err(format!(
                "configure() takes a key that it cannot know, {UNKNOWN:?}: an operator's typing error would go unnoticed"
            )),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad_schemas() {
        assert!(read(None).unwrap().is_empty());
        let schema = read(Some(
            r#"{"type":"object","required":["url"],"properties":{"url":{"type":"string","examples":["x"]},"n":{"type":"integer"}}}"#,
        ))
        .unwrap();
        assert_eq!(schema.working(), r#"{"url":"x"}"#);
        for (text, why) in [
            ("{", "not JSON"),
            (r#"{"type":"array"}"#, "object"),
            (r#"{"type":"object","properties":[]}"#, "properties"),
            (r#"{"type":"object","properties":{"a":{"type":"text"}}}"#, "\"text\", which is none"),
            (r#"{"type":"object","properties":{"a":{}}}"#, "no type"),
            (r#"{"type":"object","required":["a"]}"#, "no property"),
            (r#"{"type":"object","required":["a"],"properties":{"a":{"type":"string"}}}"#, "no example"),
        ] {
            assert!(read(Some(text)).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn settings_are_tried_out() {
        let schema = read(Some(r#"{"type":"object","properties":{"a":{"type":"string","examples":["x"]}}}"#)).unwrap();
        let strict = &mut |settings: &str| match settings {
            "{}" | r#"{"a":"x"}"# => Ok(()),
            other => Err(format!("no {other}")),
        };
        assert_eq!(schema.try_out(None, strict), Ok(()));
        assert!(schema.try_out(None, &mut |_| Ok(())).unwrap_err().contains("cannot know"));
        assert!(schema.try_out(None, &mut |_| Err("no".into())).unwrap_err().contains("its own example"));
    }
}
