use proptest::prelude::*;

use super::*;
use crate::tests::{number, record};

/// Lines of equal length.
fn lines(count: u32) -> Vec<u8> {
    (1..=count)
        .flat_map(|number| to_line(&record(number)).unwrap())
        .collect()
}

fn numbers(parsed: &Parsed) -> Vec<u32> {
    parsed
        .lines
        .iter()
        .filter_map(|(line, _)| match line {
            Line::Record(record) => Some(number(record)),
            Line::Damaged => None,
        })
        .collect()
}

#[test]
fn the_checksum_is_crc_32() {
    // The check value that every catalogue of checksums gives.
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
}

#[test]
fn what_was_written_is_read() {
    let parsed = parse_segment(&lines(3));
    assert_eq!(numbers(&parsed), [1, 2, 3]);
    assert_eq!(parsed.torn, 0);
}

#[test]
fn a_changed_byte_anywhere_damages_its_own_line_only() {
    let bytes = lines(3);
    let line = bytes.len() / 3;
    for index in 0..bytes.len() {
        let mut changed = bytes.clone();
        // Flips a bit that turns no byte into a line break.
        changed[index] ^= 0x80;
        let hit = u32::try_from(index / line).unwrap() + 1;
        let left: Vec<u32> = (1..=3).filter(|number| *number != hit).collect();
        let found = numbers(&parse_segment(&changed));
        if bytes[index] == b'\n' {
            // Two lines have become one, or the last has no end.
            assert!(
                found.iter().all(|number| left.contains(number)),
                "byte {index}: {found:?}"
            );
        } else {
            assert_eq!(found, left, "byte {index}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_parsed_and_none_get_lost(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let parsed = parse_segment(&bytes);
        let whole: usize = parsed.lines.iter().map(|(_, length)| length).sum();
        prop_assert_eq!(whole + parsed.torn, bytes.len());
    }
}
