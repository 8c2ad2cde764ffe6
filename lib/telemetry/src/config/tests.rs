use proptest::prelude::*;

use super::*;

fn faults(text: &str) -> String {
    let config: Config = toml::from_str(text).expect("valid TOML");
    let lines: Vec<String> = config.validate().iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn the_default_is_valid_and_has_no_sinks() {
    let config: Config = toml::from_str("").unwrap();
    assert_eq!(config, Config::default());
    assert!(config.validate().is_empty() && !config.has_sinks());
}

#[test]
fn every_key_can_be_written_and_read_back() {
    let text = r#"
        host = "bld-1"
        pool = "linux"
        image = "ami-1"
        region = "eu-1"
        instance_id = "i-1"
        heartbeat = "2m"
        spool_limit = "16MiB"
        flush_on_exit = "1s"
        [[influx]]
        url = "http://127.0.0.1:8086"
        org = "o"
        bucket = "b"
        timeout = "3s"
        [[influx]]
        url = "http://127.0.0.1:8087"
        api = "v1"
        database = "d"
        [[syslog]]
        address = "unix:///dev/log"
        facility = "local3"
        app_name = "farm"
        [[jsonl]]
        path = "/tmp/events.jsonl"
    "#;
    let config: Config = toml::from_str(text).unwrap();
    assert_eq!(config.validate(), []);
    assert!(config.has_sinks());
    assert_eq!(config.identity().tags().count(), 5);
    assert_eq!(config.influx[1].api, InfluxApi::V1);
    assert_eq!(config.syslog[0].facility, Facility::Local3);
    let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn the_configuration_in_the_documentation_is_one() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/telemetry.md");
    let page = fs_err::read_to_string(path).unwrap();
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let mut table: toml::Table = toml::from_str(text).unwrap();
    let config: Config = table.remove("telemetry").unwrap().try_into().unwrap();
    let counts = [config.influx.len(), config.syslog.len(), config.jsonl.len()];
    assert_eq!((table.len(), counts), (0, [2, 1, 1]));
    assert_eq!(config.spool_limit, Config::default().spool_limit);
}

#[test]
fn a_misspelt_key_is_named_with_those_that_exist() {
    let error = toml::from_str::<Config>("[[influx]]\ntoken = \"x\"")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("unknown field `token`") && error.contains("`token_file`"),
        "{error}"
    );
}

#[test]
fn all_faults_are_named_at_once() {
    insta::assert_snapshot!(faults(
        r#"
        heartbeat = "0s"
        spool_limit = "1KiB"
        [[influx]]
        url = "127.0.0.1:8086"
        [[influx]]
        url = "http://user:s3cret@db:8086/prefix?db=x"
        api = "v1"
        bucket = "b"
        user = "runner"
        timeout = "0s"
        [[influx]]
        url = "http://db:8086"
        bucket = "b"
        database = "d"
        user = "u"
        token_file = "/nowhere/token"
        [[syslog]]
        address = "udp://host"
        app_name = "my runner"
        [[jsonl]]
        path = "events.jsonl"
        [[jsonl]]
        path = "/"
        [[jsonl]]
        path = "/nowhere/events.jsonl"
        [[jsonl]]
        path = "/nowhere/events.jsonl"
        "#
    ));
}

#[test]
fn a_secret_in_a_url_is_not_repeated() {
    for url in [
        "http://user:s3cret@db:8086",
        "user:s3cret@db",
        "ftp://u:s3cret@db",
        "http://u:s3cret@",
    ] {
        let text = faults(&format!("[[influx]]\nurl = \"{url}\"\nbucket = \"b\""));
        assert!(!text.is_empty() && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn https_needs_the_feature_and_is_taken_with_it() {
    let text = faults("[[influx]]\nurl = \"https://db:8086\"\nbucket = \"b\"");
    if cfg!(feature = "tls") {
        assert_eq!(text, "");
    } else {
        assert!(
            text.contains("built without TLS: build with `--features tls`"),
            "{text}"
        );
    }
}

#[test]
fn one_target_twice_is_a_fault_whatever_its_other_keys() {
    let text = faults(
        "[[syslog]]\naddress = \"unix:///dev/log\"\n\
         [[syslog]]\naddress = \"unix:///dev/log\"\nfacility = \"user\"",
    );
    assert_eq!(
        text,
        "telemetry.syslog[1]: `syslog unix:///dev/log` is configured twice: remove one of the two"
    );
}

#[test]
fn sizes_are_whole_numbers_with_a_unit() {
    let parse = |text: &str| text.parse::<ByteSize>().map(|size| size.0).ok();
    assert_eq!(parse("64MiB"), Some(64 << 20));
    assert_eq!(parse("1 GiB"), Some(1 << 30));
    assert_eq!(parse("512KiB"), Some(512 << 10));
    assert_eq!(parse("17B"), Some(17));
    assert_eq!(parse("17"), Some(17));
    for bad in [
        "",
        "MiB",
        "-1",
        "1.5MiB",
        "64MB",
        "64mib",
        "99999999999GiB",
        "1 2",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
    assert!(toml::from_str::<Config>("spool_limit = -1").is_err());
    assert_eq!(
        toml::from_str::<Config>("spool_limit = 1048576")
            .unwrap()
            .spool_limit
            .0,
        1 << 20
    );
}

proptest! {
    #[test]
    fn a_size_reads_back_as_it_is_written(bytes in any::<u64>(), shift in 0u32..40) {
        let size = ByteSize(bytes >> shift);
        prop_assert_eq!(size.to_string().parse(), Ok(size));
    }
}
