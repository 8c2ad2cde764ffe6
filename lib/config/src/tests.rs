use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Program {
    #[serde(with = "humantime_serde")]
    interval: Option<Duration>,
    passes: u32,
    limits: BTreeMap<String, u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pool {
    image: String,
    #[serde(default)]
    max: u32,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Queue {
    Directory { path: PathBuf },
    Http { url: String, port: Option<u16> },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    builder: String,
    pool: String,
}

const SCHEMA: Schema = Schema {
    default_path: "/etc/program.toml",
    sections: &[
        Section::one::<Program>("program"),
        Section::named::<Pool>("pools", "pool"),
        Section::named::<Queue>("queues", "queue").tagged("kind"),
        Section::list::<Rule>("rules"),
    ],
    other_tables: OtherTables::Refused,
};

/// The same for a program that shares its files with others.
const OPEN: Schema = Schema {
    other_tables: OtherTables::Allowed,
    ..SCHEMA
};

/// What the program makes of its files.
#[derive(Debug)]
struct Config {
    program: Program,
    pools: BTreeMap<String, Pool>,
    queues: BTreeMap<String, Queue>,
    rules: Vec<Rule>,
}

fn source(name: &str, text: &str) -> Source {
    Source {
        path: PathBuf::from(name),
        text: text.into(),
    }
}

fn document(texts: &[(&str, &str)]) -> Result<Document, Vec<Fault>> {
    SCHEMA.read(
        texts
            .iter()
            .map(|(name, text)| source(name, text))
            .collect(),
    )
}

fn config(texts: &[(&str, &str)]) -> Result<Config, Vec<Fault>> {
    typed(&document(texts)?)
}

fn typed(document: &Document) -> Result<Config, Vec<Fault>> {
    document.typed(|tables| Config {
        program: tables.one("program"),
        pools: tables.named("pools"),
        queues: tables.named("queues"),
        rules: tables.list("rules"),
    })
}

fn lines(faults: &[Fault]) -> String {
    faults
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

fn faults(texts: &[(&str, &str)]) -> String {
    lines(&config(texts).expect_err("this configuration is wrong"))
}

#[test]
fn every_shape_of_table_becomes_its_type() {
    let config = config(&[(
        "p.toml",
        r#"
[program]
interval = "90s"
limits = { launches = 3 }
[pools.build]
image = "debian"
[queues.local]
kind = "directory"
path = "/var/spool/jobs"
[queues.ci]
url = "http://ci"
port = 80
kind = "http"
[[rules]]
builder = "linux"
pool = "build"
[[rules]]
builder = ".*"
pool = "rest"
"#,
    )])
    .unwrap();
    assert_eq!(config.program.interval, Some(Duration::from_secs(90)));
    assert_eq!(config.program.limits["launches"], 3);
    assert_eq!(config.pools["build"].image, "debian");
    assert!(matches!(&config.queues["local"], Queue::Directory { path } if path.ends_with("jobs")));
    assert!(
        matches!(&config.queues["ci"], Queue::Http { url, port: Some(80) } if url == "http://ci")
    );
    let builders: Vec<_> = config.rules.iter().map(|rule| &rule.builder).collect();
    assert_eq!(builders, ["linux", ".*"]);
    assert_eq!(config.rules[1].pool, "rest");
}

#[test]
fn nothing_set_is_every_default() {
    let config = config(&[]).unwrap();
    assert_eq!(config.program.passes, 0);
    assert!(config.pools.is_empty() && config.queues.is_empty() && config.rules.is_empty());
}

#[test]
fn every_fault_of_every_file_is_reported_at_once_by_file_and_line() {
    let main = r#"stray = 1

[program]
pases = 3
interval = "soon"

[pools.build]
image = 5
max = -1

[pols.test]
image = "debian"

[queues.local]
path = 7
kind = "directory"

[queues.ci]
url = ["http://ci"]
port = 70000
kind = "http"
pot = 80

[queues.old]
kind = "buildbott"
url = 5

[[rules]]
builder = "linux"
pool = "build"

[[rules]]
builder = 5
pol = "build"
"#;
    let drop_in = "[pools]\nextra = true\n[rules]\nbuilder = \"x\"\n[[buidlers]]\nname = 1\n";
    insta::assert_snapshot!(faults(&[("p.toml", main), ("p.d/1.toml", drop_in)]));
}

#[test]
fn a_required_key_may_stand_in_any_file() {
    let config = config(&[
        ("p.toml", "[pools.build]\nimage = \"debian\"\n"),
        ("p.d/1.toml", "[pools.build]\nmax = 4\n"),
    ])
    .unwrap();
    assert_eq!(config.pools["build"].max, 4);
}

#[test]
fn a_required_key_that_no_file_sets_is_missed_in_each_table() {
    insta::assert_snapshot!(faults(&[
        ("p.toml", "[pools.build]\nmax = 4\n[pools.test]\nmax = 4\n"),
        (
            "p.d/1.toml",
            "[pools.build]\nmax = 5\n[queues.ci]\nurl = \"http://ci\"\n[queues.local]\nkind = \"directory\"\n[[rules]]\npool = \"build\"\n"
        ),
    ]));
}

#[test]
fn a_contradiction_is_shown_where_its_key_was_set_last() {
    let document = document(&[
        (
            "p.toml",
            "[program]\npasses = 1\n[pools.build]\nimage = \"debian\"\nmax = 1\n",
        ),
        ("p.d/1.toml", "[pools.build]\n# more of them\nmax = 2\n"),
        ("p.d/2.toml", "[pools.test]\nimage = \"debian\"\n"),
    ])
    .unwrap();
    let at = |key: &str| document.locate(key, "wrong").to_string();
    assert_eq!(at("pools.build.max"), "p.d/1.toml:3: wrong");
    assert_eq!(at("pools.build.image"), "p.toml:4: wrong");
    assert_eq!(at("program.interval"), "p.toml:1: wrong");
    assert_eq!(at("queues.ci"), "p.d/2.toml: wrong");
    let found = [
        KeyFault::new("pools.test.image", "gone"),
        KeyFault::new("pools.build.image", "older than `pools.test.image`"),
    ];
    assert_eq!(
        lines(&document.agree(found).unwrap_err()),
        "p.toml:4: older than `pools.test.image`\np.d/2.toml:2: gone"
    );
    assert_eq!(document.agree([]), Ok(()));
}

#[test]
fn a_contradiction_in_a_list_is_shown_in_its_item() {
    let rules = "[[rules]]\nbuilder = 'a'\npool = 'a'\n\n[[rules]]\nbuilder = 'b'\npool = 'b'\n";
    let others = "[telemetry]\nlevel = 1\n\n[[telemetry.influx]]\nurl = 'a'\n\n[[telemetry.influx]]\nurl = 'b'\n";
    let inline = "[x]\nlist = [\n  { y = 1 },\n  { y = 2 },\n]\n";
    let document = OPEN
        .read(vec![
            source("rules.toml", rules),
            source("others.toml", others),
            source("inline.toml", inline),
        ])
        .unwrap();
    let at = |key: &str| document.locate(key, "wrong").to_string();
    assert_eq!(at("rules[0].pool"), "rules.toml:1: wrong");
    assert_eq!(at("rules[1].builder"), "rules.toml:5: wrong");
    assert_eq!(at("rules[2].builder"), "rules.toml:1: wrong");
    assert_eq!(at("telemetry.influx[0]"), "others.toml:4: wrong");
    assert_eq!(at("telemetry.influx[1].url"), "others.toml:7: wrong");
    assert_eq!(at("telemetry.level[1].url"), "others.toml:2: wrong");
    assert_eq!(at("x.list[1].y"), "inline.toml:4: wrong");
}

#[test]
fn later_files_override_single_keys_and_whole_lists() {
    let rules = "[[rules]]\nbuilder = \"a\"\npool = \"a\"\n";
    let config = config(&[
        (
            "p.toml",
            &format!("[program]\npasses = 1\n[program.limits]\na = 1\nb = 1\n{rules}{rules}"),
        ),
        ("p.d/1.toml", &format!("[program.limits]\nb = 2\n{rules}")),
    ])
    .unwrap();
    assert_eq!(config.program.passes, 1);
    assert_eq!(config.program.limits["a"], 1);
    assert_eq!(config.program.limits["b"], 2);
    assert_eq!(config.rules.len(), 1);
}

#[test]
fn tables_of_others_are_kept_where_they_are_allowed() {
    let document = OPEN
        .read(vec![source("p.toml", "[prgram]\npasses = \"many\"\n")])
        .unwrap();
    assert!(document.table().contains_key("prgram"));
    assert_eq!(OPEN.likely_meant("prgram"), Some("program"));
    assert_eq!(OPEN.likely_meant("program"), None);
    assert_eq!(OPEN.likely_meant("hg"), None);
}

#[test]
fn no_message_breaks_its_line() {
    let said = faults(&[(
        "p.toml",
        "[\"pools\\nerror: all is well\\u001b[2J\"]\n[pools.\"a\\nb\"]\nmax = \"\\n\"\n",
    )]);
    assert_eq!(said.lines().count(), 2, "{said}");
    let document = document(&[("p.toml", "[pools.a]\n")]).unwrap();
    let fault = document.locate("pools.a", "no image `x\ny`").to_string();
    assert!(!fault.contains(char::is_control), "{fault:?}");
}

#[test]
fn files_are_read_by_name_and_each_that_cannot_be_is_a_fault() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8], mode: u32| {
        let path = directory.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs_err::set_permissions(&path, mode).unwrap();
        path
    };
    let main = file("p.toml", b"[program]\npasses = 1\n", 0o644);
    file("p.d/20.toml", b"[program]\npasses = 20\n", 0o644);
    file("p.d/10.toml", b"[program]\npasses = 10\n", 0o644);
    file("p.d/.30.toml", b"an editor's draft", 0o644);
    file("p.d/README", b"no configuration", 0o644);
    let document = SCHEMA.load(Some(&main)).unwrap();
    assert_eq!(document.files().len(), 3);
    assert_eq!(typed(&document).unwrap().program.passes, 20);

    file("p.d/10.toml", b"[program]\n\xff = 1\n", 0o644);
    file("p.d/15.toml", b"", 0o666);
    file("p.d/20.toml", b"[program]\npases = 1\n", 0o644);
    let gone = directory.path().join("p.d/30.toml");
    std::os::unix::fs::symlink("nowhere", gone).unwrap();
    let faults = SCHEMA.load(Some(&main)).unwrap_err();
    let said = lines(&faults).replace(directory.path().to_str().unwrap(), "DIRECTORY");
    insta::assert_snapshot!(said);

    let missing = SCHEMA.load(Some(&directory.path().join("none.toml")));
    assert!(lines(&missing.unwrap_err()).contains("name another with `--config PATH`"));
}
