//! A strict reader of InfluxDB's line protocol: it takes what every server takes, and nothing that
//! any of them reads in its own way.

/// A value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// With the suffix `i`.
    Integer(i64),
    /// Without.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
}

/// A line taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Measurement.
    pub measurement: String,
    /// Tags in order.
    pub tags: Vec<(String, String)>,
    /// Fields in order.
    pub fields: Vec<(String, Value)>,
    /// Nanoseconds since 1970.
    pub time: i64,
}

/// Takes a line apart.
///
/// # Errors
/// What is wrong, with what follows it.
pub fn parse(line: &str) -> Result<Point, String> {
    if line.contains(char::is_control) {
        return Err("a control character".into());
    }
    let mut rest = line;
    let measurement = word(&mut rest)?;
    let mut tags = Vec::new();
    while take(&mut rest, ",") {
        let key = word(&mut rest)?;
        expect(&mut rest, "=")?;
        tags.push((key, tag_value(&mut rest)?));
    }
    expect(&mut rest, " ")?;
    let mut fields = Vec::new();
    loop {
        let key = word(&mut rest)?;
        expect(&mut rest, "=")?;
        fields.push((key, field_value(&mut rest)?));
        if !take(&mut rest, ",") {
            break;
        }
    }
    expect(&mut rest, " ")?;
    let time = rest.parse().map_err(|error| format!("{error}: {rest}"))?;
    Ok(Point {
        measurement,
        tags,
        fields,
        time,
    })
}

fn take(rest: &mut &str, wanted: &str) -> bool {
    match rest.strip_prefix(wanted) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    }
}

fn expect(rest: &mut &str, wanted: &str) -> Result<(), String> {
    if take(rest, wanted) {
        Ok(())
    } else {
        Err(format!("expected `{wanted}`: {rest}"))
    }
}

/// Measurement or key: letters, digits and `_` need no escape anywhere.
fn word(rest: &mut &str) -> Result<String, String> {
    let length = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    if length == 0 {
        return Err(format!("expected a word: {rest}"));
    }
    let (word, after) = rest.split_at(length);
    *rest = after;
    Ok(word.to_owned())
}

/// Up to a bare comma or space. A backslash stands only before what it escapes.
fn tag_value(rest: &mut &str) -> Result<String, String> {
    let mut value = String::new();
    let mut characters = rest.char_indices();
    let end = loop {
        match characters.next() {
            None => break rest.len(),
            Some((at, ',' | ' ')) => break at,
            Some((at, '=')) => return Err(format!("a bare `=` in a tag: {}", &rest[at..])),
            Some((at, '\\')) => match characters.next() {
                Some((_, escaped @ (',' | ' ' | '='))) => value.push(escaped),
                _ => return Err(format!("a backslash that escapes nothing: {}", &rest[at..])),
            },
            Some((_, other)) => value.push(other),
        }
    };
    if value.is_empty() {
        return Err(format!("an empty tag: {rest}"));
    }
    *rest = &rest[end..];
    Ok(value)
}

fn field_value(rest: &mut &str) -> Result<Value, String> {
    if take(rest, "\"") {
        return text(rest).map(Value::Text);
    }
    let length = rest.find([',', ' ']).unwrap_or(rest.len());
    let (value, after) = rest.split_at(length);
    *rest = after;
    match value {
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        _ => match value.strip_suffix('i') {
            Some(integer) => integer
                .parse()
                .map(Value::Integer)
                .map_err(|error| format!("{error}: {value}")),
            None if value
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) =>
            {
                value
                    .parse()
                    .map(Value::Float)
                    .map_err(|error| format!("{error}: {value}"))
            }
            None => Err(format!("no value: {value}")),
        },
    }
}

fn text(rest: &mut &str) -> Result<String, String> {
    let mut value = String::new();
    let mut characters = rest.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => {
                *rest = &rest[at + 1..];
                return Ok(value);
            }
            '\\' => match characters.next() {
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => return Err(format!("a backslash that escapes nothing: {}", &rest[at..])),
            },
            other => value.push(other),
        }
    }
    Err(format!("text without an end: {rest}"))
}
