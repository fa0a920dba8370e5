//! From TOML to checked values, guided by the table of options.
//!
//! Knows no option by name: each key of the file is looked up in [`options`], its value is read as the
//! row's [`Kind`] says, and everything that does not fit is a finding with its place in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ipnet::IpNet;
use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::options::{self, Default, Kind};
use crate::report::Report;

/// A value that fits its [`Kind`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text, host, choice, path, endpoint, route domain.
    Text(String),
    /// Flag.
    Flag(bool),
    /// Count, octets, milliseconds.
    Number(u64),
    /// Rate per minute; 0 is `"off"`.
    Rate(u32),
    /// Domains, mechanisms, words, paths.
    Words(Vec<String>),
    /// Addresses.
    Addresses(Vec<SocketAddr>),
    /// Networks.
    Networks(Vec<IpNet>),
    /// What is meant for a library.
    Settings(Settings),
}

/// A table whose keys a library knows, not we.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// As written.
    pub json: Json,
    /// Where each key stands, `a.b.0`.
    pub places: BTreeMap<String, Range<usize>>,
}

/// A value that was written, with its places.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What.
    pub value: Value,
    /// The value's place.
    pub span: Range<usize>,
    /// Places of a list's elements.
    pub elements: Vec<Range<usize>>,
}

/// One table: the file's top with all plain tables, or one element of a repeated one.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Where it begins.
    pub header: Range<usize>,
    /// What was written, by the path of its option.
    pub entries: BTreeMap<&'static str, Entry>,
    /// What was written and does not fit: told already, so not "missing".
    pub broken: BTreeSet<&'static str>,
}

/// `[mechanism.NAME]`: the library that has it knows what may stand there.
#[derive(Clone, Debug)]
pub struct MechanismSettings {
    /// Where its name stands.
    pub span: Range<usize>,
    /// A JSON object.
    pub json: String,
}

/// A whole file.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// Everything outside repeated tables.
    pub root: Table,
    /// Repeated tables by their path, `listener[]`.
    pub repeated: BTreeMap<&'static str, Vec<Table>>,
    /// Settings of mechanisms by their names.
    pub mechanisms: BTreeMap<String, MechanismSettings>,
}

impl Table {
    /// The place of an option's value, else of the table.
    pub fn span(&self, path: &str) -> Range<usize> {
        self.entries.get(path).map_or_else(|| self.header.clone(), |entry| entry.span.clone())
    }

    /// The place of a list's element.
    pub fn element(&self, path: &str, index: usize) -> Range<usize> {
        self.entries.get(path).and_then(|entry| entry.elements.get(index).cloned()).unwrap_or_else(|| self.span(path))
    }

    /// What was written, else the option's default for `role`; `None` when there is none.
    pub fn value(&self, path: &str, role: &str) -> Option<Value> {
        if let Some(entry) = self.entries.get(path) {
            return Some(entry.value.clone());
        }
        let option = options::find(path).expect("config asks only for rows of the table (tested)");
        let literal = match option.default {
            Default::Is(literal) => literal,
            Default::ByRole { mx, submission, submissions } => match role {
                "mx" => mx,
                "submission" => submission,
                _ => submissions,
            },
            Default::Unset(_) | Default::Required => return None,
        };
        Some(literal_value(option.kind, literal).expect("defaults fit their kind (tested)"))
    }
}

/// A default or example as a value.
pub fn literal_value(kind: Kind, literal: &str) -> Option<Value> {
    let value = DeValue::parse(literal).ok()?;
    read(kind, &value).ok().map(|(value, _)| value)
}

/// Reads a file. Findings go to `report`; what was wrong is missing from the result.
pub fn parse(report: &mut Report) -> Values {
    let text = report.text.clone();
    let (document, errors) = DeTable::parse_recoverable(&text);
    for error in &errors {
        let (cause, remedy) = syntax(error.message());
        report.error(error.span(), "", cause, remedy);
    }
    let mut values = Values::default();
    // Keys of a file that was only half understood would give findings that are not true.
    if errors.is_empty() {
        let mut root = Table::default();
        walk("", document.get_ref(), &mut root, &mut values.repeated, report);
        values.root = root;
        if let Some(tables) = document.get_ref().get("mechanism") {
            values.mechanisms = mechanisms(tables, report);
        }
    }
    values
}

/// The parser's words, with a remedy.
fn syntax(message: &str) -> (String, &'static str) {
    let message = message.lines().next().unwrap_or_default().trim().replace(';', ",");
    let remedy = match message.as_str() {
        m if m.contains("duplicate key") => "keep one of the two",
        m if m.contains("invalid basic string") || m.contains("invalid literal string") => {
            "text begins and ends with a quote, on one line"
        }
        m if m.contains("string values must be quoted") => "write text in quotes: key = \"value\"",
        m if m.contains("array") => "a list is written [\"one\", \"two\"]",
        m if m.contains("table") => "a table begins with [name], a repeated one with [[name]]",
        _ => "the form is: key = value, one per line",
    };
    (message, remedy)
}

fn walk(
    prefix: &str,
    table: &DeTable<'_>,
    into: &mut Table,
    repeated: &mut BTreeMap<&'static str, Vec<Table>>,
    report: &mut Report,
) {
    for (key, value) in table.iter() {
        let path = format!("{prefix}{}", key.get_ref());
        let shown = path.replace("[]", "");
        if let Some(option) = options::find(&path) {
            match read(option.kind, value) {
                Ok((parsed, elements)) => {
                    into.entries.insert(option.path, Entry { value: parsed, span: value.span(), elements });
                }
                Err(wrongs) => {
                    into.broken.insert(option.path);
                    for wrong in wrongs {
                        let remedy = wrong
                            .remedy
                            .unwrap_or_else(|| format!("write it like: {} = {}", option.key(), option.example));
                        report.error(Some(wrong.span), shown.clone(), wrong.cause, remedy);
                    }
                }
            }
        } else if let Some(section) = section_of(&format!("{path}[]")) {
            let Some(array) = value.get_ref().as_array() else {
                let cause = format!("is {} where repeated tables are meant", kind_name(value.get_ref()));
                report.error(Some(key.span()), shown, cause, format!("write it with two brackets: [[{path}]]"));
                continue;
            };
            for element in array.iter() {
                let Some(inner) = element.get_ref().as_table() else {
                    let cause = format!("holds {}", kind_name(element.get_ref()));
                    let remedy = format!("write it as a table of its own: [[{path}]]");
                    report.error(Some(element.span()), shown.clone(), cause, remedy);
                    continue;
                };
                let mut table = Table { header: element.span(), ..Table::default() };
                walk(&format!("{path}[]."), inner, &mut table, repeated, report);
                repeated.entry(section).or_default().push(table);
            }
        } else if options::all()
            .any(|option| option.path.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.')))
        {
            match value.get_ref().as_table() {
                Some(inner) => walk(&format!("{path}."), inner, into, repeated, report),
                None => {
                    let cause = format!("is {} where a table is meant", kind_name(value.get_ref()));
                    let inner = options::all().find_map(|option| option.path.strip_prefix(path.as_str()));
                    let remedy = format!("write its keys: {}{} = …", key.get_ref(), inner.unwrap_or_default());
                    report.error(Some(key.span()), shown, cause, remedy);
                }
            }
        } else if path != "mechanism" {
            report.error(Some(key.span()), shown, "unknown key", suggestion(prefix, key.get_ref()));
        }
    }
}

fn mechanisms(tables: &Spanned<DeValue<'_>>, report: &mut Report) -> BTreeMap<String, MechanismSettings> {
    let mut all = BTreeMap::new();
    let Some(table) = tables.get_ref().as_table() else {
        let cause = format!("is {} where a table is meant", kind_name(tables.get_ref()));
        report.error(Some(tables.span()), "mechanism", cause, "write a table for each: [mechanism.GSSAPI]");
        return all;
    };
    for (key, value) in table.iter() {
        let shown = format!("mechanism.{}", key.get_ref());
        match (mechanism(key.get_ref()), value.get_ref().as_table()) {
            (Ok(name), Some(_)) => match json(value) {
                Ok(object) => {
                    let settings = MechanismSettings { span: key.span(), json: object.to_string() };
                    all.insert(name, settings);
                }
                Err(wrong) => report.error(
                    Some(wrong.span),
                    shown,
                    wrong.cause,
                    wrong.remedy.unwrap_or_else(|| "write text, whole numbers, true or false".to_owned()),
                ),
            },
            (Err((cause, remedy)), _) => {
                let remedy = remedy.unwrap_or_else(|| "write a name like GSSAPI".to_owned());
                report.error(Some(key.span()), shown, cause, remedy);
            }
            (Ok(name), None) => {
                let cause = format!("is {} where a table is meant", kind_name(value.get_ref()));
                report.error(Some(value.span()), shown, cause, format!("write its keys below [mechanism.{name}]"));
            }
        }
    }
    all
}

/// A setting as its library gets it.
fn json(value: &Spanned<DeValue<'_>>) -> Result<serde_json::Value, Wrong> {
    let wrong = |cause: &str| Wrong { span: value.span(), cause: cause.to_owned(), remedy: None };
    Ok(match value.get_ref() {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Integer(_) => integer(value.get_ref())
            .and_then(|number| i64::try_from(number).ok())
            .ok_or_else(|| wrong("is no number of 64 bits"))?
            .into(),
        DeValue::Array(list) => list.iter().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        DeValue::Table(table) => {
            let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                let key: &std::borrow::Cow<'_, str> = key.get_ref();
                Ok((key.to_string(), json(value)?))
            };
            serde_json::Value::Object(table.iter().map(entry).collect::<Result<_, _>>()?)
        }
        other @ (DeValue::Float(_) | DeValue::Datetime(_)) => {
            return Err(wrong(&format!("is {}, which no setting is", kind_name(other))));
        }
    })
}

/// The static path of a repeated table, when there is one with this name.
fn section_of(path: &str) -> Option<&'static str> {
    options::sections().map(|section| section.path).find(|&section| section == path)
}

/// The remedy for an unknown key.
fn suggestion(prefix: &str, key: &str) -> String {
    let here = options::all().filter_map(|option| option.path.strip_prefix(prefix)).map(|rest| {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        &rest[..end]
    });
    let nearest = here
        .map(|name| (distance(&key.to_ascii_lowercase().replace('-', "_"), name), name))
        .min()
        .filter(|&(distance, name)| distance <= 2.max(name.len() / 3) && distance < name.len());
    if let Some((_, name)) = nearest {
        return format!("did you mean \"{name}\"?");
    }
    let inside = |option: &&options::Opt| option.path.strip_prefix(prefix).is_some_and(|rest| ends_with_key(rest, key));
    let anywhere = || options::all().find(|option| ends_with_key(option.path, key));
    match options::all().find(inside).or_else(anywhere) {
        Some(option) if option.path.starts_with(prefix) && !prefix.is_empty() => {
            format!("write {} = {}", &option.path[prefix.len()..], option.example)
        }
        Some(option) if option.section().is_empty() => "it belongs at the top of the file".to_owned(),
        Some(option) => {
            let section = option.section();
            let name = section.strip_suffix("[]").map_or_else(|| format!("[{section}]"), |name| format!("[[{name}]]"));
            format!("it belongs in {name}")
        }
        None => "take it out; `portreeve config reference` lists every key".to_owned(),
    }
}

fn ends_with_key(path: &str, key: &str) -> bool {
    path.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Edits between two words; a swap of neighbours is one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// What a value is, in words.
fn kind_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Why a value does not fit.
struct Wrong {
    span: Range<usize>,
    cause: String,
    /// `None`: "write it like the example".
    remedy: Option<String>,
}

type Items<T> = Result<(Vec<T>, Vec<Range<usize>>), Vec<Wrong>>;
type Read = Result<(Value, Vec<Range<usize>>), Vec<Wrong>>;

fn read(kind: Kind, value: &Spanned<DeValue<'_>>) -> Read {
    let wrong = |cause: String, remedy: Option<String>| Err(vec![Wrong { span: value.span(), cause, remedy }]);
    let text = value.get_ref().as_str();
    let mistyped = |wanted: &str| wrong(format!("is {}, but must be {wanted}", kind_name(value.get_ref())), None);
    let single = |parsed: Result<Value, (String, Option<String>)>| match parsed {
        Ok(value) => Ok((value, Vec::new())),
        Err((cause, remedy)) => wrong(cause, remedy),
    };
    match kind {
        Kind::Flag => match value.get_ref().as_bool() {
            Some(flag) => Ok((Value::Flag(flag), Vec::new())),
            None => mistyped("true or false, without quotes"),
        },
        Kind::Count { min, max } => match integer(value.get_ref()) {
            Some(number) => single(ranged(number, min, max, |n| n.to_string())),
            None => mistyped("a whole number, without quotes"),
        },
        Kind::Octets { min, max } => match (integer(value.get_ref()), text) {
            (Some(number), _) => single(ranged(number, min, max, options::octets)),
            (None, Some(text)) => single(octets(text).and_then(|n| ranged(n.into(), min, max, options::octets))),
            _ => mistyped("octets, like \"50MiB\""),
        },
        Kind::Duration { min, max } => match (integer(value.get_ref()), text) {
            (Some(number), _) => {
                wrong(format!("{number} has no unit"), Some(format!("write \"{number}s\" for seconds; also ms, m, h")))
            }
            (None, Some(text)) => single(duration(text).and_then(|n| ranged(n.into(), min, max, options::duration))),
            _ => mistyped("a time, like \"30s\""),
        },
        Kind::Rate => match text {
            Some(text) => single(rate(text)),
            None => mistyped("a rate, like \"30/min\", or \"off\""),
        },
        Kind::Text => match text {
            Some(text) => single(plain(text).map(|text| Value::Text(text.into()))),
            None => mistyped("text in quotes"),
        },
        Kind::Path => match text {
            Some(text) => single(path(text).map(|text| Value::Text(text.into()))),
            None => mistyped("a path in quotes"),
        },
        Kind::Host => match text {
            Some(text) => single(domain(text).map(Value::Text)),
            None => mistyped("a host name in quotes"),
        },
        Kind::RouteDomain => match text {
            Some("*") => Ok((Value::Text("*".into()), Vec::new())),
            Some(text) => single(domain(text).map(Value::Text)),
            None => mistyped("a domain in quotes, or \"*\""),
        },
        Kind::Choice(words) => match text {
            Some(text) if words.contains(&text) => Ok((Value::Text(text.into()), Vec::new())),
            Some(text) => {
                let nearest = words.iter().map(|word| (distance(text, word), *word)).min();
                let remedy = match nearest {
                    Some((distance, word)) if distance <= 2 => format!("did you mean \"{word}\"?"),
                    _ => format!("write {}", kind.describe()),
                };
                wrong(format!("{text:?} is not one of the choices"), Some(remedy))
            }
            None => mistyped(&kind.describe()),
        },
        Kind::Endpoint => match text {
            Some(text) => single(endpoint(text)),
            None => mistyped(&kind.describe()),
        },
        Kind::Addresses => list(value, kind, address).map(|(items, spans)| (Value::Addresses(items), spans)),
        Kind::Networks => list(value, kind, network).map(|(items, spans)| (Value::Networks(items), spans)),
        Kind::Domains => list(value, kind, domain).map(|(items, spans)| (Value::Words(items), spans)),
        Kind::Mechanisms if text == Some("auto") => Ok((Value::Text("auto".into()), Vec::new())),
        Kind::Settings => match value.get_ref().as_table() {
            Some(_) => {
                let mut places = BTreeMap::new();
                let json = free(value, "", &mut places);
                Ok((Value::Settings(Settings { json, places }), Vec::new()))
            }
            None => mistyped("a table"),
        },
        Kind::Mechanisms => list(value, kind, mechanism).map(|(items, spans)| (Value::Words(items), spans)),
        Kind::Words => {
            list(value, kind, |text| plain(text).map(str::to_owned)).map(|(items, spans)| (Value::Words(items), spans))
        }
        Kind::Paths => {
            list(value, kind, |text| path(text).map(str::to_owned)).map(|(items, spans)| (Value::Words(items), spans))
        }
    }
}

/// A value as JSON; where it stands goes to `places`.
fn free(value: &Spanned<DeValue<'_>>, path: &str, places: &mut BTreeMap<String, Range<usize>>) -> Json {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    places.insert(path.to_owned(), value.span());
    match value.get_ref() {
        DeValue::String(text) => Json::String(text.to_string()),
        DeValue::Integer(_) => {
            let number = integer(value.get_ref());
            let number = number.and_then(serde_json::Number::from_i128);
            number.map_or(Json::Null, Json::Number)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Json::Null, Json::from),
        DeValue::Boolean(flag) => Json::Bool(*flag),
        DeValue::Datetime(date) => Json::String(date.to_string()),
        DeValue::Array(items) => {
            items.iter().enumerate().map(|(at, item)| free(item, &below(&at.to_string()), places)).collect()
        }
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, value)| {
                let name = key.get_ref().to_string();
                let json = free(value, &below(&name), places);
                (name, json)
            });
            Json::Object(entries.collect())
        }
    }
}

fn list<T: PartialEq>(
    value: &Spanned<DeValue<'_>>,
    kind: Kind,
    item: impl Fn(&str) -> Result<T, (String, Option<String>)>,
) -> Items<T> {
    let Some(array) = value.get_ref().as_array() else {
        let remedy = value.get_ref().as_str().map(|text| format!("write it in brackets: [\"{text}\"]"));
        let cause = format!("is {}, but must be a {}", kind_name(value.get_ref()), kind.describe());
        return Err(vec![Wrong { span: value.span(), cause, remedy }]);
    };
    let (mut items, mut spans, mut wrongs) = (Vec::new(), Vec::new(), Vec::new());
    for element in array.iter() {
        let wrong = match element.get_ref().as_str().map(&item) {
            Some(Ok(parsed)) if items.contains(&parsed) => {
                Some(("stands there twice".to_owned(), Some("take one of them out".to_owned())))
            }
            Some(Ok(parsed)) => {
                items.push(parsed);
                spans.push(element.span());
                None
            }
            Some(Err(wrong)) => Some(wrong),
            None => Some((format!("is {}, but must be text in quotes", kind_name(element.get_ref())), None)),
        };
        if let Some((cause, remedy)) = wrong {
            wrongs.push(Wrong { span: element.span(), cause, remedy });
        }
    }
    if wrongs.is_empty() { Ok((items, spans)) } else { Err(wrongs) }
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

type Parsed<T> = Result<T, (String, Option<String>)>;

fn ranged(number: i128, min: u64, max: u64, show: fn(u64) -> String) -> Parsed<Value> {
    match u64::try_from(number) {
        Ok(number) if number < min => {
            Err((format!("{} is too small", show(number)), Some(format!("write {} to {}", show(min), show(max)))))
        }
        Ok(number) if number > max => {
            Err((format!("{} is too large", show(number)), Some(format!("write {} to {}", show(min), show(max)))))
        }
        Ok(number) => Ok(Value::Number(number)),
        Err(_) => Err((format!("{number} is out of range"), Some(format!("write {} to {}", show(min), show(max))))),
    }
}

/// Number and unit of `50MiB`.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

fn octets(text: &str) -> Parsed<u64> {
    let bad = |cause: String| Err((cause, Some("write a number with KiB, MiB or GiB, like \"50MiB\"".into())));
    let Some((number, unit)) = split_unit(text) else { return bad(format!("{text:?} is no number of octets")) };
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return bad(format!("unknown unit {unit:?}")),
    };
    number.checked_mul(factor).map_or_else(|| bad(format!("{text:?} is too large")), Ok)
}

fn duration(text: &str) -> Parsed<u64> {
    let bad = |cause: String| Err((cause, Some("write a number with ms, s, m or h, like \"30s\"".into())));
    let Some((number, unit)) = split_unit(text) else { return bad(format!("{text:?} is no time")) };
    let factor: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => return bad(format!("{text:?} has no unit")),
        _ => return bad(format!("unknown unit {unit:?}")),
    };
    number.checked_mul(factor).map_or_else(|| bad(format!("{text:?} is too long")), Ok)
}

fn rate(text: &str) -> Parsed<Value> {
    let bad = |cause: String| Err((cause, Some("write like \"30/min\" or \"5/s\", or \"off\"".into())));
    if text == "off" {
        return Ok(Value::Rate(0));
    }
    let Some((count, unit)) = text.split_once('/') else { return bad(format!("{text:?} is no rate")) };
    let per_minute = match unit.trim() {
        "s" => 60,
        "min" => 1,
        unit => return bad(format!("unknown unit {unit:?}")),
    };
    match count.trim().parse::<u32>().ok().and_then(|count| count.checked_mul(per_minute)) {
        Some(count) if count > 0 => Ok(Value::Rate(count)),
        _ => bad(format!("{count:?} is no positive number")),
    }
}

fn plain(text: &str) -> Parsed<&str> {
    if text.is_empty() {
        Err(("is empty".into(), None))
    } else if text.chars().any(char::is_control) {
        Err(("has control characters".into(), None))
    } else {
        Ok(text)
    }
}

fn path(text: &str) -> Parsed<&str> {
    let text = plain(text)?;
    if text.starts_with('~') {
        return Err(("`~` is not expanded".into(), Some("write the whole path".into())));
    }
    Ok(text)
}

/// A domain in lower case; U-labels are kept (RFC 6531).
fn domain(text: &str) -> Parsed<String> {
    let bad = |cause: &str| Err((format!("{text:?} {cause}"), None));
    if text.contains('@') {
        return bad("is an address, not a domain");
    }
    let fine = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
    };
    if text.len() > 255 || !text.split('.').all(fine) {
        return bad("is no domain name");
    }
    Ok(text.to_lowercase())
}

/// RFC 4422 §3.1.
fn mechanism(text: &str) -> Parsed<String> {
    let upper = text.to_ascii_uppercase();
    let fine = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
    if (1..=20).contains(&upper.len()) && upper.bytes().all(fine) {
        Ok(upper)
    } else {
        Err((
            format!("{text:?} is no mechanism name"),
            Some("1 to 20 letters, digits, - and _, like \"PLAIN\" (RFC 4422 §3.1)".into()),
        ))
    }
}

fn address(text: &str) -> Parsed<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address {
            SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => Err((
                "is an IPv4 address in IPv6 form".into(),
                Some(format!("write {}:{}", v6.ip().to_canonical(), v6.port())),
            )),
            _ => Ok(address),
        };
    }
    let remedy = if text.parse::<IpAddr>().is_ok() {
        let host = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
        format!("add a port: \"{host}:25\"")
    } else if let Some(port) = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")).or(Some(text))
        && port.parse::<u16>().is_ok()
    {
        format!("write [\"0.0.0.0:{port}\", \"[::]:{port}\"]")
    } else if let Some(port) = text.strip_prefix("localhost:") {
        format!("write \"127.0.0.1:{port}\"")
    } else {
        "write address and port, like \"0.0.0.0:25\" or \"[::]:25\"".to_owned()
    };
    Err((format!("{text:?} is no address with port"), Some(remedy)))
}

fn network(text: &str) -> Parsed<IpNet> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip.to_canonical()));
    }
    match text.parse::<IpNet>() {
        Ok(network) if network.trunc() == network => Ok(network),
        Ok(network) => Err((
            format!("{text} has bits beyond its /{}", network.prefix_len()),
            Some(format!("write \"{}\"", network.trunc())),
        )),
        Err(_) => {
            Err((format!("{text:?} is no network"), Some("write like \"192.0.2.0/24\" or \"2001:db8::/32\"".into())))
        }
    }
}

fn endpoint(text: &str) -> Parsed<Value> {
    let fine = match text.strip_prefix("unix:") {
        _ if text == "off" => true,
        Some(path) => !path.is_empty() && path.len() <= 100 && !path.contains('\0'),
        None => match text.parse::<SocketAddr>() {
            Ok(address) if !address.ip().is_loopback() => {
                return Err((
                    format!("{text} can be reached from other hosts"),
                    Some("write a loopback address, like \"127.0.0.1:9025\", or \"unix:PATH\"".into()),
                ));
            }
            Ok(_) => true,
            Err(_) => false,
        },
    };
    if fine {
        Ok(Value::Text(text.into()))
    } else {
        Err((
            format!("{text:?} is no place to listen"),
            Some("write \"unix:PATH\", \"127.0.0.1:9025\" or \"off\"".into()),
        ))
    }
}
