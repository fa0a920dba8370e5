//! Settings against the JSON Schema of whoever gets them: the part of JSON Schema that settings need.
//!
//! `type`, `properties`, `required`, `additionalProperties`, `enum`, `const`, `minimum`, `maximum`, `minLength`,
//! `maxLength`, `items`, `minItems`, `maxItems`. Keywords that are not among them bind nobody here; `configure` has
//! the last word. A key that the schema does not describe is refused unless `additionalProperties` allows it: an
//! operator's typing error must not go unnoticed.

use std::fmt;

use serde_json::Value;

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Where: keys from the outermost on; a list's element by its number.
    pub path: Vec<String>,
    /// Why.
    pub cause: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => f.write_str(&self.cause),
            false => write!(f, "{}: {}", self.path.join("."), self.cause),
        }
    }
}

/// Compares settings with a schema.
pub fn check(schema: &Value, settings: &Value) -> Result<(), Misfit> {
    fits(schema, settings, &mut Vec::new())
}

fn fits(schema: &Value, value: &Value, path: &mut Vec<String>) -> Result<(), Misfit> {
    let wrong = |path: &[String], cause: String| Err(Misfit { path: path.to_vec(), cause });
    let types = match schema.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(some)) => some.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|one| is_of(value, one)) {
        return wrong(path, format!("must be {}", types.join(" or ")));
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        return wrong(path, format!("must be one of {}", allowed.join(", ")));
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return wrong(path, format!("must be {}", schema["const"]));
    }
    let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    let within = |size: f64, least: &str, most: &str| match (bound(least), bound(most)) {
        (Some(bound), _) if size < bound => Some(format!("at least {bound}")),
        (_, Some(bound)) if size > bound => Some(format!("at most {bound}")),
        _ => None,
    };
    match value {
        Value::Number(number) => {
            if let Some(bound) = within(number.as_f64().unwrap_or_default(), "minimum", "maximum") {
                return wrong(path, format!("must be {bound}"));
            }
        }
        Value::String(text) => {
            if let Some(bound) = within(text.chars().count() as f64, "minLength", "maxLength") {
                return wrong(path, format!("must have {bound} characters"));
            }
        }
        Value::Array(list) => {
            if let Some(bound) = within(list.len() as f64, "minItems", "maxItems") {
                return wrong(path, format!("must have {bound} elements"));
            }
            for (at, item) in list.iter().enumerate() {
                path.push(at.to_string());
                fits(&schema["items"], item, path)?;
                path.pop();
            }
        }
        Value::Object(table) => {
            let known = &schema["properties"];
            for (key, inner) in table {
                path.push(key.clone());
                match (known.get(key), schema.get("additionalProperties")) {
                    (Some(property), _) => fits(property, inner, path)?,
                    (None, Some(Value::Bool(true))) => {}
                    (None, Some(other @ Value::Object(_))) => fits(other, inner, path)?,
                    (None, _) if path.len() > 1 && !known.is_object() => {}
                    (None, _) => {
                        let names: Vec<&str> =
                            known.as_object().into_iter().flatten().map(|(name, _)| &**name).collect();
                        let known = match names.is_empty() {
                            true => "there are no settings".into(),
                            false => format!("known are {}", names.join(", ")),
                        };
                        return wrong(path, format!("is no setting; {known}"));
                    }
                }
                path.pop();
            }
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !table.contains_key(name) {
                    return wrong(path, format!("`{name}` is missing"));
                }
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    Ok(())
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        // One that does not exist fits nothing.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_fits_and_what_does_not() {
        let schema = json!({
            "type": "object", "required": ["url"],
            "properties": {
                "url": { "type": "string", "minLength": 3 },
                "mode": { "enum": ["a", "b"] },
                "n": { "type": "integer", "minimum": 1, "maximum": 9 },
                "hosts": { "type": "array", "maxItems": 2, "items": { "type": "string" } },
                "inner": { "type": "object", "properties": { "on": { "type": "boolean" } } },
            },
        });
        let whole = json!({ "url": "x:y", "mode": "b", "n": 9, "hosts": ["a", "b"], "inner": { "on": true } });
        assert_eq!(check(&schema, &whole), Ok(()));
        for (settings, told) in [
            (json!([]), "must be object"),
            (json!({}), "`url` is missing"),
            (json!({ "url": 7 }), "url: must be string"),
            (json!({ "url": "x" }), "url: must have at least 3 characters"),
            (json!({ "url": "x:y", "mode": "c" }), "mode: must be one of \"a\", \"b\""),
            (json!({ "url": "x:y", "n": 10 }), "n: must be at most 9"),
            (json!({ "url": "x:y", "n": 1.5 }), "n: must be integer"),
            (json!({ "url": "x:y", "hosts": ["a", 7] }), "hosts.1: must be string"),
            (json!({ "url": "x:y", "hosts": ["a", "b", "c"] }), "hosts: must have at most 2 elements"),
            (json!({ "url": "x:y", "inner": { "off": true } }), "inner.off: is no setting; known are on"),
            (json!({ "url": "x:y", "ulr": 1 }), "ulr: is no setting; known are hosts, inner, mode, n, url"),
        ] {
            assert_eq!(check(&schema, &settings).map_err(|misfit| misfit.to_string()), Err(told.into()));
        }
        assert!(check(&json!({ "type": "object" }), &json!({ "a": 1 })).is_err());
        assert!(check(&json!({ "additionalProperties": true }), &json!({ "a": 1 })).is_ok());
    }
}
