//! Lines of the journal: JSON records.
#![no_main]

use farm_events::Record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    let Ok(record) = serde_json::from_str::<Record>(line) else {
        return;
    };
    let written = serde_json::to_string(&record).expect("plain data");
    assert!(
        !written.contains('\n'),
        "a record on two lines: {written:?}"
    );
    let again: Record = serde_json::from_str(&written).expect("it is our own");
    assert_eq!(again, record);
    // No name stands twice, as a tag or as a field, in any database.
    let columns = again.event.columns();
    let mut names: Vec<&str> = columns.iter().map(|column| column.name).collect();
    names.extend(again.identity.tags().map(|(name, _)| name));
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
});
