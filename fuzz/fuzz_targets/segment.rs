//! A piece of a segment of the telemetry spool: whatever a crash or a bad disk left.
#![no_main]

use farm_events::Record;
use farm_telemetry::spool::{Line, parse_segment};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // The same lines with right checksums: almost no input would have one by chance.
    let mut sealed = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        sealed.extend(format!("{:08x} ", crc32(line)).as_bytes());
        sealed.extend(line);
        sealed.push(b'\n');
    }
    check(&sealed);
});

fn check(bytes: &[u8]) {
    let parsed = parse_segment(bytes);
    let whole: usize = parsed.lines.iter().map(|(_, length)| length).sum();
    assert_eq!(
        whole + parsed.torn,
        bytes.len(),
        "bytes that belong to no line"
    );
    assert!(!bytes[whole..].contains(&b'\n'));
    let mut rest = bytes;
    for (line, length) in &parsed.lines {
        let (text, after) = rest.split_at(*length);
        rest = after;
        let text = text.strip_suffix(b"\n").expect("a line ends");
        assert_eq!(*line, expected(text));
    }
}

fn expected(text: &[u8]) -> Line {
    let record = text.split_at_checked(9).and_then(|(head, json)| {
        let sealed = head == format!("{:08x} ", crc32(json)).as_bytes();
        sealed
            .then(|| serde_json::from_slice::<Record>(json).ok())
            .flatten()
    });
    record.map_or(Line::Damaged, |record| Line::Record(Box::new(record)))
}

/// CRC-32 bit by bit, as ISO 3309 defines it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1 == 1;
            crc >>= 1;
            if carry {
                crc ^= 0xEDB8_8320;
            }
        }
    }
    !crc
}
