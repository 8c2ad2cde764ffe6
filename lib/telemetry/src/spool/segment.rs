//! The form of a segment file: one record per line, each behind its own checksum.
//!
//! `8 hex digits of CRC-32, a space, JSON, line break`. A line that does not end is a write that
//! was cut short by a crash; a line whose checksum is wrong was damaged later. Both are told from
//! good lines without a length or an index, and a person can read the file.

use farm_events::Record;

/// What one line of a segment holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A record as it was appended.
    Record(Box<Record>),
    /// Not what was appended, or from a version that knows events this one does not.
    Damaged,
}

/// The lines of a piece of a segment that starts at the start of a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Each line that ends, in order, and its length with the line break.
    pub lines: Vec<(Line, usize)>,
    /// Length of what follows the last line break: a torn line, or nothing.
    pub torn: usize,
}

/// Reads a piece of a segment. Any bytes will do; none can make it fail.
#[must_use]
pub fn parse_segment(bytes: &[u8]) -> Parsed {
    let ends = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |last| last + 1);
    let (whole, torn) = bytes.split_at(ends);
    let lines = whole
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| (parse_line(&line[..line.len() - 1]), line.len()))
        .collect();
    Parsed {
        lines,
        torn: torn.len(),
    }
}

fn parse_line(line: &[u8]) -> Line {
    checked(line)
        .and_then(|json| serde_json::from_slice(json).ok())
        .map_or(Line::Damaged, |record| Line::Record(Box::new(record)))
}

/// The JSON of a line whose checksum is right.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (checksum, rest) = line.split_at_checked(8)?;
    let json = rest.strip_prefix(b" ")?;
    let expected = format!("{:08x}", crc32(json));
    (checksum == expected.as_bytes()).then_some(json)
}

/// The line of a record, line break included.
pub(super) fn to_line(record: &Record) -> serde_json::Result<Vec<u8>> {
    const PREFIX: &[u8] = b"00000000 ";
    let mut line = Vec::with_capacity(512);
    line.extend_from_slice(PREFIX);
    serde_json::to_writer(&mut line, record)?;
    let checksum = format!("{:08x}", crc32(&line[PREFIX.len()..]));
    line[..8].copy_from_slice(checksum.as_bytes());
    line.push(b'\n');
    Ok(line)
}

/// CRC-32 as in gzip and PNG (reflected polynomial 0xEDB88320).
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32_table();
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8)
    })
}

const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index: u32 = 0;
    while index < 256 {
        let mut value = index;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0xEDB8_8320
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index as usize] = value;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests;
