//! A strict reader of RFC 5424, and of the `key=value` words that we write as its text.

/// A frame taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Facility times eight plus severity.
    pub priority: u8,
    /// HOSTNAME.
    pub host: String,
    /// APP-NAME.
    pub app_name: String,
    /// PROCID.
    pub process_id: String,
    /// MSGID.
    pub message_id: String,
    /// Id and parameters of the structured data, if there is any.
    pub data: Option<(String, Vec<(String, String)>)>,
    /// MSG.
    pub text: String,
}

/// Takes a frame apart: RFC 5424, section 6.
///
/// # Errors
/// What is wrong.
pub fn parse(frame: &str) -> Result<Frame, String> {
    let rest = frame.strip_prefix('<').ok_or("no `<`")?;
    let (priority, rest) = rest.split_once('>').ok_or("no `>`")?;
    let priority: u8 = priority
        .parse()
        .map_err(|_| format!("priority `{priority}`"))?;
    if priority > 191 {
        return Err(format!("priority {priority}"));
    }
    let rest = rest.strip_prefix("1 ").ok_or("another version")?;
    let (time, rest) = rest.split_once(' ').ok_or("no time")?;
    check_time(time)?;
    let (host, rest) = word(rest, 255)?;
    let (app_name, rest) = word(rest, 48)?;
    let (process_id, rest) = word(rest, 128)?;
    let (message_id, rest) = word(rest, 32)?;
    let (data, rest) = match rest.strip_prefix('-') {
        Some(rest) => (None, rest),
        None => {
            let (data, rest) = element(rest)?;
            (Some(data), rest)
        }
    };
    let text = rest.strip_prefix(' ').ok_or("no space before the text")?;
    Ok(Frame {
        priority,
        host,
        app_name,
        process_id,
        message_id,
        data,
        text: text.to_owned(),
    })
}

/// `2026-11-20T03:00:00.000000Z`, with at most six digits of a second.
fn check_time(time: &str) -> Result<(), String> {
    let pattern = "dddd-dd-ddTdd:dd:dd";
    let fits = |(byte, wanted): (u8, u8)| match wanted {
        b'd' => byte.is_ascii_digit(),
        other => byte == other,
    };
    let (seconds, fraction) = time
        .split_once('.')
        .ok_or_else(|| format!("time `{time}`"))?;
    let digits = fraction
        .strip_suffix('Z')
        .ok_or_else(|| format!("time `{time}`"))?;
    let fraction_fits =
        (1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_time = seconds.len() == pattern.len()
        && seconds.bytes().zip(pattern.bytes()).all(fits)
        && fraction_fits;
    if is_time {
        Ok(())
    } else {
        Err(format!("time `{time}`"))
    }
}

/// A field of the header: PRINTUSASCII, at most so many.
fn word(rest: &str, longest: usize) -> Result<(String, &str), String> {
    let (word, rest) = rest.split_once(' ').ok_or("the header has no end")?;
    if word.is_empty() || word.len() > longest || !word.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(format!("`{word}` in the header"));
    }
    Ok((word.to_owned(), rest))
}

type Element = (String, Vec<(String, String)>);

/// One SD-ELEMENT.
fn element(rest: &str) -> Result<(Element, &str), String> {
    let rest = rest.strip_prefix('[').ok_or("no structured data")?;
    let length = rest
        .find([' ', ']'])
        .ok_or("structured data without an end")?;
    let (id, mut rest) = rest.split_at(length);
    let mut parameters = Vec::new();
    while let Some(after) = rest.strip_prefix(' ') {
        let (name, after) = after
            .split_once("=\"")
            .ok_or("a parameter without a value")?;
        let is_name = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"=]\"".contains(&byte));
        if !is_name {
            return Err(format!("`{name}` as the name of a parameter"));
        }
        let (value, after) = quoted(after, &['"', '\\', ']'])?;
        parameters.push((name.to_owned(), value));
        rest = after;
    }
    let rest = rest
        .strip_prefix(']')
        .ok_or("structured data without an end")?;
    Ok(((id.to_owned(), parameters), rest))
}

/// The rest of a text in quotes, in which `special` characters stand behind a backslash only.
fn quoted<'t>(text: &'t str, special: &[char]) -> Result<(String, &'t str), String> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, escaped)) if special.contains(&escaped) => value.push(escaped),
                _ => return Err(format!("a backslash that escapes nothing: {}", &text[at..])),
            },
            bare if special.contains(&bare) => {
                return Err(format!("a bare `{bare}`: {}", &text[at..]));
            }
            other => value.push(other),
        }
    }
    Err("a value without an end".into())
}

/// The words of our text: `NAME key=value key="quoted value"`.
///
/// # Errors
/// What is wrong.
pub fn words(text: &str) -> Result<(String, Vec<(String, String)>), String> {
    let (name, mut rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
    let mut pairs = Vec::new();
    while let Some(after) = rest.strip_prefix(' ') {
        let (key, after) = after
            .split_once('=')
            .ok_or_else(|| format!("no `=`: {after}"))?;
        let (value, after) = match after.strip_prefix('"') {
            Some(after) => quoted(after, &['"', '\\'])?,
            None => {
                let (value, after) = after.split_at(after.find(' ').unwrap_or(after.len()));
                (value.to_owned(), after)
            }
        };
        pairs.push((key.to_owned(), value));
        rest = after;
    }
    if rest.is_empty() {
        Ok((name.to_owned(), pairs))
    } else {
        Err(format!("left over: {rest}"))
    }
}
