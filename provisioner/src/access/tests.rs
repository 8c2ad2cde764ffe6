use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    now + jiff::SignedDuration::try_from(by).unwrap()
}

fn noon() -> Timestamp {
    at("2026-08-01T12:00:00Z")
}

fn access() -> Access {
    Access::new("farm", &[7; SECRET_BYTES])
}

fn pool(name: &str) -> PoolName {
    PoolName::parse(name).unwrap()
}

fn image(name: &str) -> ImageName {
    ImageName::parse(name).unwrap()
}

fn instance(name: &str) -> InstanceId {
    InstanceId::parse(name).unwrap()
}

fn settings(state_dir: &Path) -> ProvisionerSettings {
    ProvisionerSettings {
        state_dir: state_dir.to_owned(),
        ..ProvisionerSettings::default()
    }
}

#[test]
fn a_join_token_says_what_it_lets_join() {
    let token = access().join_token(&pool("linux/64.a"), &image("base:1"), noon());
    assert_eq!(
        access().joining(token.expose(), noon()),
        Ok(Joining {
            pool: pool("linux/64.a"),
            image: image("base:1"),
        })
    );
}

#[test]
fn a_join_token_counts_in_its_epoch_and_the_next() {
    let begin = Timestamp::from_second(3000 * EPOCH.as_secs().cast_signed()).unwrap();
    let second = Duration::from_secs(1);
    let last = later(begin, EPOCH - second);
    let token = access().join_token(&pool("a"), &image("b"), last);
    assert_eq!(
        token,
        access().join_token(&pool("a"), &image("b"), begin),
        "one token for the whole epoch"
    );
    assert_ne!(
        token,
        access().join_token(&pool("a"), &image("b"), later(last, second))
    );
    let taken = |now| access().joining(token.expose(), now).map(|_| ());
    assert_eq!(taken(begin), Ok(()));
    // The clock of whoever made it is a little ahead.
    let before = Timestamp::from_second(begin.as_second() - 300).unwrap();
    assert_eq!(taken(before), Ok(()));
    let too_early = Timestamp::from_second(begin.as_second() - 301).unwrap();
    assert_eq!(taken(too_early), Err(TokenFault::Expired));
    // Launched in the last second of an epoch, a host has a week to come up.
    assert_eq!(taken(later(last, EPOCH)), Ok(()));
    assert_eq!(taken(later(begin, 2 * EPOCH)), Err(TokenFault::Expired));
}

#[test]
fn a_host_token_speaks_for_its_instance() {
    let token = access().host_token(&instance("i-1"), "00ff");
    assert_eq!(access().speaker(token.expose()), Ok(instance("i-1")));
    assert_eq!(token, access().host_token(&instance("i-1"), "00ff"));
    assert_ne!(token, access().host_token(&instance("i-1"), "00fe"));
    assert_ne!(token, access().host_token(&instance("i-2"), "00ff"));
}

#[test]
fn no_token_is_taken_for_another() {
    let join = access().join_token(&pool("a"), &image("b"), noon());
    let host = access().host_token(&instance("i-1"), "00ff");
    assert_eq!(access().speaker(join.expose()), Err(TokenFault::Unknown));
    assert_eq!(
        access().joining(host.expose(), noon()),
        Err(TokenFault::Unknown)
    );
    // Nor that of another fleet, or of another secret.
    for other in [
        Access::new("other", &[7; SECRET_BYTES]),
        Access::new("farm", &[8; SECRET_BYTES]),
    ] {
        assert_eq!(other.speaker(host.expose()), Err(TokenFault::Unknown));
        assert_eq!(
            other.joining(join.expose(), noon()),
            Err(TokenFault::Unknown)
        );
    }
}

#[test]
fn a_token_that_is_changed_anywhere_is_none() {
    let join = access().join_token(&pool("a"), &image("b"), noon());
    let host = access().host_token(&instance("i-1"), "00ff");
    for token in [join.expose(), host.expose()] {
        for place in 0..token.len() {
            for other in ["A", "z", ".", "0", "", "é"] {
                let mut changed = token.to_owned();
                changed.replace_range(place..=place, other);
                if changed == token {
                    continue;
                }
                assert!(access().joining(&changed, noon()).is_err(), "{changed}");
                assert!(access().speaker(&changed).is_err(), "{changed}");
            }
        }
    }
}

#[test]
fn what_is_no_token_is_none() {
    let long = "fh1.".repeat(10_000);
    for text in ["", ".", "....", "fj1....", "fh1...", "Bearer x", &long] {
        assert_eq!(
            access().joining(text, noon()),
            Err(TokenFault::Unknown),
            "{text:.20}"
        );
        assert_eq!(access().speaker(text), Err(TokenFault::Unknown));
    }
}

#[test]
fn parts_cannot_be_shifted_into_each_other() {
    let one = access().join_token(&pool("ab"), &image("c"), noon());
    let other = access().join_token(&pool("a"), &image("bc"), noon());
    let tag = |token: &Token| token.expose().rsplit('.').next().unwrap().to_owned();
    assert_ne!(tag(&one), tag(&other));
}

#[test]
fn user_data_is_what_a_host_reads_and_the_same_all_week() {
    let mut config = Config::default();
    config.provisioner.url = "http://10.0.0.5:7077/".into();
    let handed = |now| {
        access()
            .user_data(&config, &pool("linux64"), &image("base"), now)
            .json
    };
    let json: serde_json::Value = serde_json::from_str(&handed(noon())).unwrap();
    assert_eq!(json["farmhand"], 1);
    assert_eq!(json["pool"], "linux64");
    assert_eq!(json["image"], "base");
    assert_eq!(json["provisioner"], "http://10.0.0.5:7077");
    let token = json["join_token"].as_str().unwrap();
    assert!(access().joining(token, noon()).is_ok());
    assert_eq!(
        handed(noon()),
        handed(later(noon(), Duration::from_hours(24)))
    );
    assert_ne!(handed(noon()), handed(later(noon(), EPOCH)));
}

#[test]
fn user_data_fits_however_long_its_names_are() {
    let mut config = Config::default();
    config.provisioner.url = format!("http://{}", "x".repeat(2048 - 7));
    let name = "n".repeat(128);
    let data = access().user_data(&config, &pool(&name), &image(&name), noon());
    assert!(data.json.len() <= USER_DATA_LIMIT, "{}", data.json.len());
    let json: serde_json::Value = serde_json::from_str(&data.json).unwrap();
    let token = json["join_token"].as_str().unwrap();
    assert!(access().joining(token, noon()).is_ok());
}

#[test]
fn the_secret_is_made_once_for_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let state_dir = directory.path().join("state");
    let first = Access::open(&settings(&state_dir)).unwrap();
    let path = state_dir.join("secret");
    let mode = fs_err::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let text = fs_err::read_to_string(&path).unwrap();
    assert_eq!(text.trim().len(), 64);
    assert!(text.trim().bytes().all(|byte| byte.is_ascii_hexdigit()));
    let token = first.host_token(&instance("i-1"), "00");
    let again = Access::open(&settings(&state_dir)).unwrap();
    assert_eq!(again.speaker(token.expose()), Ok(instance("i-1")));
    // And another farm has another one.
    let elsewhere = Access::open(&settings(&directory.path().join("other"))).unwrap();
    assert!(elsewhere.speaker(token.expose()).is_err());
}

#[test]
fn those_who_start_at_the_same_time_agree_on_one_secret() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("state");
        let tokens: Vec<Token> = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let access = Access::open(&settings(&state_dir)).unwrap();
                        access.host_token(&instance("i-1"), "00")
                    })
                })
                .collect();
            let tokens = starters.into_iter().map(|starter| starter.join().unwrap());
            tokens.collect()
        });
        assert!(tokens.iter().all(|token| token == &tokens[0]));
        let left: Vec<_> = fs_err::read_dir(&state_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["secret"], "nothing unfinished is left");
    }
}

#[test]
fn provisioners_with_one_secret_file_take_each_others_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shared");
    fs_err::write(&path, format!("{}\n", "0aF9".repeat(16))).unwrap();
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let open = |name: &str| {
        Access::open(&ProvisionerSettings {
            secret_file: Some(path.clone()),
            ..settings(&directory.path().join(name))
        })
    };
    let token = open("one").unwrap().host_token(&instance("i-1"), "00");
    assert_eq!(
        open("two").unwrap().speaker(token.expose()),
        Ok(instance("i-1"))
    );
    assert!(!directory.path().join("one").exists(), "no second secret");
}

#[test]
fn a_secret_that_cannot_be_trusted_is_refused_with_what_to_type() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let open = || Access::open(&settings(directory.path())).map(|_| ());
    let chmod = |mode| {
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    fs_err::write(&path, "ab".repeat(32)).unwrap();
    chmod(0o644);
    let fault = open().unwrap_err();
    assert!(matches!(
        fault,
        AccessError::Secret(SecretError::TooOpen { .. })
    ));
    assert!(fault.to_string().contains("chmod 600"), "{fault}");
    chmod(0o600);
    open().unwrap();
    for text in ["ab", &"zz".repeat(32), &"ab".repeat(33)] {
        fs_err::write(&path, text).unwrap();
        let fault = open().unwrap_err();
        assert!(matches!(fault, AccessError::NoSecret(_)), "{text}");
        assert!(!fault.to_string().contains(text), "{fault}");
    }
}

#[test]
fn a_named_secret_that_is_missing_is_never_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shared");
    let fault = Access::open(&ProvisionerSettings {
        secret_file: Some(path.clone()),
        ..settings(directory.path())
    })
    .unwrap_err();
    assert!(matches!(fault, AccessError::Missing(_)), "{fault}");
    assert!(
        fault.to_string().contains("openssl rand -hex 32"),
        "{fault}"
    );
    assert!(!path.exists());
}

#[test]
fn a_secret_is_not_made_where_others_may_write() {
    let directory = tempfile::tempdir().unwrap();
    fs_err::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let fault = Access::open(&settings(directory.path())).unwrap_err();
    assert!(matches!(fault, AccessError::Place(_)), "{fault}");
    assert!(!directory.path().join("secret").exists());
}

#[test]
fn the_admin_token_is_the_one_in_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin");
    let mut settings = settings(directory.path());
    assert!(Admin::open(&settings).unwrap().is_none());
    settings.admin_token_file = Some(path.clone());
    assert!(matches!(Admin::open(&settings), Err(AccessError::Admin(_))));
    fs_err::write(&path, "s3cr3t\n").unwrap();
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let admin = Admin::open(&settings).unwrap().unwrap();
    assert!(admin.is("s3cr3t"));
    for wrong in ["", "s3cr3", "s3cr3t ", "S3cr3t", "s3cr3tt"] {
        assert!(!admin.is(wrong), "{wrong:?}");
    }
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let token = access().host_token(&instance("i-1"), "00ff");
    let admin = Admin::new("s3cr3t", [1; SECRET_BYTES]);
    let shown = format!("{:?} {token:?} {admin:?}", access());
    assert_eq!(
        shown,
        "Access { fleet: \"farm\", .. } Token([redacted]) Admin([redacted])"
    );
}
