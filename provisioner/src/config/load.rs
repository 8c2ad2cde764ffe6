//! Reading `provisioner.toml`, and finding keys that contradict each other.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use farm_config::{Document, Fault, KeyFault, OtherTables, Schema, Section, Source};

use super::{
    CloudKind, Config, DEFAULT_PATH, DemandSettings, Ec2Settings, FleetLimits, ImageSettings,
    LocalSettings, PoolSettings, ProvisionerSettings, RegionSettings, RuleSettings, SourceSettings,
};
use crate::ids::{ImageId, PoolName, Region};

/// The region of the local cloud, where none is configured.
const LOCAL_REGION: &str = "local";

const SCHEMA: Schema = Schema {
    default_path: DEFAULT_PATH,
    sections: &[
        Section::one::<ProvisionerSettings>("provisioner"),
        Section::one::<LocalSettings>("local"),
        Section::one::<Ec2Settings>("ec2"),
        Section::one::<FleetLimits>("limits"),
        Section::named::<RegionSettings>("regions", "region"),
        Section::named::<ImageSettings>("images", "image"),
        Section::named::<PoolSettings>("pools", "pool"),
        Section::named::<SourceSettings>("sources", "source").tagged("kind"),
        Section::list::<RuleSettings>("rules"),
        Section::one::<DemandSettings>("demand"),
        Section::one::<farm_telemetry::Config>("telemetry"),
    ],
    other_tables: OtherTables::Refused,
};

/// The configuration in `path` and in the `*.toml` files of the directory beside it that is named
/// like it with `.d`, by name; later files override earlier ones key by key. Without `path` that of
/// [`DEFAULT_PATH`], if it exists, else the defaults.
///
/// # Errors
/// All faults of all files, at once.
pub fn load(path: Option<&Path>) -> Result<Config, Vec<Fault>> {
    config(&SCHEMA.load(path)?)
}

/// The configuration in these files. Public for tests and fuzzing: it touches no file.
///
/// # Errors
/// All faults of all files, at once.
pub fn from_sources(sources: Vec<Source>) -> Result<Config, Vec<Fault>> {
    config(&SCHEMA.read(sources)?)
}

fn config(document: &Document) -> Result<Config, Vec<Fault>> {
    let mut misnamed = Vec::new();
    let config = document.typed(|tables| Config {
        provisioner: tables.one("provisioner"),
        local: tables.one("local"),
        ec2: tables.one("ec2"),
        limits: tables.one("limits"),
        regions: by_name("regions", tables.named("regions"), &mut misnamed),
        images: by_name("images", tables.named("images"), &mut misnamed),
        pools: by_name("pools", tables.named("pools"), &mut misnamed),
        sources: by_name("sources", tables.named("sources"), &mut misnamed),
        rules: tables.list("rules"),
        demand: tables.one("demand"),
        telemetry: tables.one("telemetry"),
    })?;
    document.agree(misnamed.into_iter().chain(contradictions(&config)))?;
    Ok(on_this_machine(config))
}

/// The local cloud needs no regions and no image ids: there is one region, `local`, unless the file
/// has some, and an image is called the same everywhere.
fn on_this_machine(mut config: Config) -> Config {
    if config.provisioner.cloud != CloudKind::Local {
        return config;
    }
    if config.regions.is_empty() {
        let region = Region::parse(LOCAL_REGION).expect("made of plain characters");
        config.regions.insert(region, RegionSettings::default());
    }
    for (name, image) in &mut config.images {
        let id = ImageId::parse(name.as_str()).expect("ids allow what names allow");
        for region in config.regions.keys() {
            image
                .ids
                .entry(region.clone())
                .or_insert_with(|| id.clone());
        }
    }
    config
}

fn by_name<N: FromStr<Err: Display> + Ord, T>(
    section: &str,
    tables: BTreeMap<String, T>,
    faults: &mut Vec<KeyFault>,
) -> BTreeMap<N, T> {
    let mut parsed = BTreeMap::new();
    for (name, settings) in tables {
        match name.parse::<N>() {
            Ok(name) => {
                parsed.insert(name, settings);
            }
            Err(fault) => {
                faults.push(KeyFault::new(
                    format!("{section}.{name}"),
                    fault.to_string(),
                ));
            }
        }
    }
    parsed
}

/// What the types cannot check: keys that contradict each other, each with the key to point at.
fn contradictions(config: &Config) -> Vec<KeyFault> {
    let mut faults = of_the_provisioner(config);
    for (name, pool) in &config.pools {
        faults.extend(of_a_pool(config, name, pool));
    }
    faults.extend(of_regions(config));
    faults.extend(crate::demand::faults(config));
    let telemetry = config.telemetry.validate().into_iter();
    faults.extend(
        telemetry.map(|fault| KeyFault::new(format!("telemetry.{}", fault.key), fault.to_string())),
    );
    faults
}

fn of_the_provisioner(config: &Config) -> Vec<KeyFault> {
    let settings = &config.provisioner;
    let mut faults = Vec::new();
    let mut fault = |key: &str, message: String| {
        faults.push(KeyFault::new(format!("provisioner.{key}"), message));
    };
    if PoolName::parse(&settings.fleet).is_err() {
        fault(
            "fleet",
            format!(
                "`provisioner.fleet` is `{}`: expected a name of letters, digits and . _ : / + -",
                settings.fleet
            ),
        );
    }
    if settings.interval.is_zero() {
        fault(
            "interval",
            "`provisioner.interval` is zero: expected a time such as \"1m\"".into(),
        );
    }
    if settings.passes_kept == 0 {
        fault(
            "passes_kept",
            "`provisioner.passes_kept` is 0: expected at least 1, so that `explain` has a pass to explain".into(),
        );
    }
    let is_url = settings.store.starts_with("postgres://");
    if settings.store != "sqlite" && !is_url {
        fault(
            "store",
            format!(
                "`provisioner.store` is `{}`: expected `sqlite` or `postgres://USER@HOST:PORT/DATABASE`",
                settings.store
            ),
        );
    }
    if is_url && !cfg!(feature = "postgres") {
        fault(
            "store",
            "`provisioner.store` names PostgreSQL, which this program was built without: build it with `--features postgres`".into(),
        );
    }
    if is_url && has_password(&settings.store) {
        fault(
            "store",
            "`provisioner.store` holds a password: put it into a file and name that in `provisioner.store_password_file`".into(),
        );
    }
    if settings.cloud == CloudKind::Ec2 && !cfg!(feature = "ec2") {
        fault(
            "cloud",
            "`provisioner.cloud` is `ec2`, which this program was built without: build it with `--features ec2`".into(),
        );
    }
    if !settings.listen.ip().is_loopback() && settings.admin_token_file.is_none() {
        fault(
            "listen",
            format!(
                "`provisioner.listen` is {}, which others can reach: set `provisioner.admin_token_file`, or listen on 127.0.0.1",
                settings.listen
            ),
        );
    }
    if let Some(wrong) = fault_of_url(settings) {
        fault("url", wrong);
    }
    if !(0.0..=100.0).contains(&config.limits.max_leaving) {
        faults.push(KeyFault::new(
            "limits.max_leaving",
            format!(
                "`limits.max_leaving` is {}: expected a percentage from 0 to 100",
                config.limits.max_leaving
            ),
        ));
    }
    faults
}

/// Longest address of the API: it goes into user data, which has 16 KiB in all.
const LONGEST_URL: usize = 2048;

fn fault_of_url(settings: &ProvisionerSettings) -> Option<String> {
    let url = settings.url.as_str();
    if url.is_empty() {
        let is_everywhere = settings.listen.ip().is_unspecified();
        return is_everywhere.then(|| {
            format!(
                "`provisioner.url` is not set, and hosts cannot reach `{}`: expected the address they reach it at, such as `http://10.0.0.5:{}`",
                settings.listen,
                settings.listen.port()
            )
        });
    }
    let place = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let is_plain = url.len() <= LONGEST_URL && url.bytes().all(|byte| byte.is_ascii_graphic());
    let names_a_host = place.is_some_and(|place| {
        !place.is_empty() && !place.starts_with('/') && !place.contains(['@', '?', '#'])
    });
    (!is_plain || !names_a_host).then(|| {
        format!(
            "`provisioner.url` is `{}`: expected an address such as `http://10.0.0.5:7077`, without user, query and spaces",
            url.chars().take(100).flat_map(char::escape_debug).collect::<String>()
        )
    })
}

fn has_password(url: &str) -> bool {
    url.strip_prefix("postgres://")
        .and_then(|rest| rest.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'))
}

fn of_a_pool(config: &Config, name: &PoolName, pool: &PoolSettings) -> Vec<KeyFault> {
    let mut faults = Vec::new();
    let mut fault = |key: &str, message: String| {
        faults.push(KeyFault::new(format!("pools.{name}.{key}"), message));
    };
    if pool.min > pool.max {
        fault(
            "min",
            format!(
                "`pools.{name}.min` is {}, above `max` ({}): expected at most that many",
                pool.min, pool.max
            ),
        );
    }
    if pool.max_step == 0 {
        fault(
            "max_step",
            format!(
                "`pools.{name}.max_step` is 0: expected at least 1; `max = 0` launches nothing"
            ),
        );
    }
    if !(pool.ratio > 0.0 && pool.ratio.is_finite()) {
        fault(
            "ratio",
            format!(
                "`pools.{name}.ratio` is {}: expected a number above 0",
                pool.ratio
            ),
        );
    }
    if pool.types.is_empty() {
        fault(
            "types",
            format!(
                "`pools.{name}.types` is empty: expected types of machines with the work each does, such as `types = {{ \"c6i.2xlarge\" = 1.0 }}`"
            ),
        );
    }
    for (instance_type, performance) in &pool.types {
        if !(*performance > 0.0 && performance.is_finite()) {
            fault(
                "types",
                format!(
                    "`pools.{name}.types.\"{instance_type}\"` is {performance}: expected a number above 0"
                ),
            );
        }
    }
    match &pool.image {
        None => fault(
            "image",
            format!(
                "`pools.{name}.image` is not set: expected one of the images {}",
                listed(config.images.keys())
            ),
        ),
        Some(image) => match config.images.get(image) {
            None => fault(
                "image",
                format!(
                    "`pools.{name}.image` is `{image}`, which is not configured: expected one of {}",
                    listed(config.images.keys())
                ),
            ),
            Some(settings) => {
                let local = config.provisioner.cloud == CloudKind::Local;
                if local && settings.directory.is_none() {
                    faults.push(KeyFault::new(
                        format!("images.{image}"),
                        format!(
                            "`images.{image}.directory` is not set: the local cloud expects a directory with `tasks.d`"
                        ),
                    ));
                }
                if !local && settings.ids.is_empty() {
                    faults.push(KeyFault::new(
                        format!("images.{image}"),
                        format!(
                            "`images.{image}.ids` is empty: expected its id in each region, such as `ids = {{ us-east-1 = \"ami-…\" }}`"
                        ),
                    ));
                }
            }
        },
    }
    for region in &pool.regions {
        if !config.regions.contains_key(region) {
            faults.push(KeyFault::new(
                format!("pools.{name}.regions"),
                format!(
                    "`pools.{name}.regions` names `{region}`, which is not configured: expected some of {}",
                    listed(config.regions.keys())
                ),
            ));
        }
    }
    faults
}

fn of_regions(config: &Config) -> Vec<KeyFault> {
    let weights = config
        .regions
        .iter()
        .filter(|(_, settings)| !(settings.weight >= 0.0 && settings.weight.is_finite()));
    let mut faults: Vec<KeyFault> = weights
        .map(|(region, settings)| {
            KeyFault::new(
                format!("regions.{region}.weight"),
                format!(
                    "`regions.{region}.weight` is {}: expected 0 (launch nothing there) or a number above",
                    settings.weight
                ),
            )
        })
        .collect();
    if config.provisioner.cloud == CloudKind::Ec2
        && config.regions.is_empty()
        && !config.pools.is_empty()
    {
        faults.push(KeyFault::new(
            "provisioner.cloud",
            "no region is configured: expected at least one `[regions.NAME]` with its subnets",
        ));
    }
    faults
}

/// Names for a message, or that there are none.
fn listed<T: Display>(names: impl Iterator<Item = T>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        "(none is configured)".into()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source {
            path: "provisioner.toml".into(),
            text: text.into(),
        }
    }

    const SMALLEST: &str = r#"
[images.base]
directory = "/images/base"

[pools.build]
image = "base"
types = { small = 1.0 }
"#;

    #[test]
    fn the_smallest_configuration_is_one_pool_with_an_image() {
        let config = from_sources(vec![source(SMALLEST)]).expect("has no fault");
        assert_eq!(config.pools.len(), 1);
        assert_eq!(config.provisioner.cloud, CloudKind::Local);
        let regions: Vec<&Region> = config.regions.keys().collect();
        assert_eq!(regions, [&Region::parse("local").unwrap()]);
        let image = config.images.values().next().unwrap();
        assert_eq!(image.ids[regions[0]].as_str(), "base");
    }

    #[test]
    fn every_fault_is_reported_at_once_with_its_line() {
        let text = r#"
[provisioner]
interval = "0s"
store = "mysql"
listen = "0.0.0.0:7077"

[limits]
max_instances = -1

[regions.here]
weight = -1.0

[images.base]

[pools.build]
image = "bas"
types = { small = 0 }
min = 5
max = 2
regions = ["there"]

[pools."two words"]
image = "base"

[sources.ci]
kind = "jenkins"

[[rules]]
job = "linux"
pool = "biuld"

[pool.build]
"#;
        let faults = from_sources(vec![source(text)]).expect_err("is full of faults");
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!("faults_of_single_keys", lines.join("\n"));

        let without = text
            .replace("max_instances = -1", "")
            .replace("kind = \"jenkins\"", "kind = \"exec\"")
            .replace("[pool.build]", "");
        let faults = from_sources(vec![source(&without)]).expect_err("has contradictions");
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!("contradictions", lines.join("\n"));
    }

    #[test]
    fn every_key_is_documented() {
        fn keys<T: serde::Serialize>(settings: &T) -> Vec<String> {
            let value = serde_json::to_value(settings).expect("settings are JSON");
            value
                .as_object()
                .expect("a table")
                .keys()
                .cloned()
                .collect()
        }
        let page = include_str!("../../../docs/provisioner-configuration.md");
        let section = |head: &str| {
            let (_, rest) = page.split_once(&format!("## `{head}`\n")).expect(head);
            rest.split("\n## ").next().unwrap_or(rest)
        };
        let rule = RuleSettings {
            job: String::new(),
            pool: None,
            source: None,
        };
        for (head, keys) in [
            ("[provisioner]", keys(&ProvisionerSettings::default())),
            ("[local]", keys(&LocalSettings::default())),
            ("[ec2]", keys(&Ec2Settings::default())),
            ("[limits]", keys(&FleetLimits::default())),
            ("[regions.NAME]", keys(&RegionSettings::default())),
            ("[images.NAME]", keys(&ImageSettings::default())),
            ("[pools.NAME]", keys(&PoolSettings::default())),
            ("[demand]", keys(&DemandSettings::default())),
            ("[[rules]]", keys(&rule)),
        ] {
            for key in keys {
                let row = format!("| `{key}` |");
                assert!(section(head).contains(&row), "{head} {key}");
            }
        }
    }

    #[test]
    fn a_password_in_the_address_of_the_store_is_refused_and_not_repeated() {
        let text =
            format!("{SMALLEST}\n[provisioner]\nstore = \"postgres://farm:hunter2@db/farm\"\n");
        let faults = from_sources(vec![source(&text)]).expect_err("holds a password");
        let message = faults[0].to_string();
        assert!(message.contains("store_password_file"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}
