use super::*;

/// The faults of a configuration with one pool, `linux`.
fn faults_of(text: &str) -> Vec<String> {
    let config = format!("[pools.linux]\n{text}");
    let config: Config = toml::from_str(&config).unwrap();
    let faults = faults(&config).into_iter();
    faults
        .map(|fault| format!("{}: {}", fault.key, fault.message))
        .collect()
}

/// A source of each kind, as the documentation shows it.
const GOOD: &str = r#"
    [sources.master]
    kind = "buildbot"
    url = "http://buildbot.example:8010"

    [sources.tc]
    kind = "taskcluster"
    url = "http://tc.example"
    queues = { "proj-farm/linux" = "linux" }
    client_id = "project/farm"
    token_file = "/etc/farmhand/taskcluster"

    [sources.gh]
    kind = "github"
    url = "http://ghe.example/api/v3"
    repositories = ["octo/app"]

    [sources.bk]
    kind = "buildkite"
    url = "http://agent.example"
    queues = { default = "linux" }
    token_file = "/etc/farmhand/buildkite"

    [sources.web]
    kind = "http"
    url = "http://ci.example/stats?queue=linux"
    pool = "linux"
    pending = "/pending"

    [sources.program]
    kind = "exec"
    command = ["/usr/local/bin/pending"]

    [sources.here]
    kind = "spool"
    directory = "/var/spool/farmhand"

    [[rules]]
    job = "linux"
    pool = "linux"
    source = "master"
"#;

#[test]
fn sources_as_documented_have_no_fault() {
    assert_eq!(faults_of(GOOD), Vec::<String>::new());
}

#[test]
fn every_contradiction_is_named_with_its_key() {
    let faults = faults_of(
        r#"
        [sources.a]
        kind = "buildbot"
        timeout = "0s"
        [sources.b]
        kind = "buildbot"
        url = "ftp://ci.example"
        [sources.c]
        kind = "taskcluster"
        url = "http://user:password@tc.example"
        token_file = "relative"
        [sources.d]
        kind = "taskcluster"
        url = "http://tc.example"
        client_id = "farm"
        queues = { "linux" = "linxu" }
        [sources.e]
        kind = "github"
        url = "http://"
        [sources.f]
        kind = "github"
        url = "no address"
        repositories = ["app", "octo/../app", "octo/app"]
        [sources.g]
        kind = "buildkite"
        url = "http://agent.example"
        [sources.h]
        kind = "http"
        url = "http://ci.example"
        pending = "n"
        [sources.i]
        kind = "exec"
        pools = ["windows"]
        [sources.j]
        kind = "spool"
        pool = "linux"
        [[rules]]
        job = "(oops"
        pool = "linux6"
        source = "k"
        [demand]
        min_age = "1h"
        max_age = "1h"
        stale_after = "0s"
        "#,
    );
    assert!(!faults.concat().contains("password@"), "{faults:?}");
    insta::assert_snapshot!(faults.join("\n"));
}

#[test]
fn https_needs_the_feature() {
    let faults = faults_of("[sources.a]\nkind = 'buildbot'\nurl = 'https://ci.example'");
    if cfg!(feature = "tls") {
        assert_eq!(faults, Vec::<String>::new());
    } else {
        assert_eq!(
            faults,
            [
                "sources.a.url: `sources.a.url` is `https://ci.example`, and this program was built without TLS: build it with `--features tls`, or use `http://`"
            ]
        );
    }
}

#[test]
fn what_has_no_fault_can_be_made() {
    let config: Config = toml::from_str(&format!("[pools.linux]\n{GOOD}")).unwrap();
    for (name, settings) in &config.sources {
        assert!(
            super::super::Source::new(settings).is_ok(),
            "sources.{name}"
        );
    }
}

#[test]
fn every_example_of_the_documentation_is_a_configuration() {
    let page = include_str!("../../../../docs/demand.md");
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(examples.len() > 7, "{} examples", examples.len());
    for example in examples {
        let pools = "[pools]\nbuild-linux64 = {}\ngpu = {}\n";
        let config: Config = toml::from_str(&format!("{pools}{example}"))
            .unwrap_or_else(|error| panic!("{error}\n{example}"));
        assert_eq!(faults(&config), [], "{example}");
    }
}
