use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), content).unwrap();
    fs_err::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

#[test]
fn a_token_file_that_only_its_owner_can_read_is_taken() {
    for mode in [0o600, 0o400] {
        let secret = read(file(b"s3cret\n", mode).path()).unwrap();
        assert_eq!(secret.expose(), "s3cret");
    }
}

#[test]
fn a_token_file_that_others_can_touch_is_refused() {
    for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777] {
        let file = file(b"s3cret\n", mode);
        let error = read(file.path()).unwrap_err();
        assert!(
            matches!(error, SecretError::TooOpen { .. }),
            "{mode:o}: {error}"
        );
        assert!(error.to_string().contains("run `chmod 600 "), "{error}");
        assert!(!error.to_string().contains("s3cret"));
    }
}

#[test]
fn a_token_file_without_a_token_is_refused() {
    for content in [
        &b""[..],
        b"\n",
        b"two words\n",
        b"line\nline\n",
        b"\xff\xfe",
        b"t\0n",
    ] {
        let error = read(file(content, 0o600).path()).unwrap_err();
        assert!(
            matches!(error, SecretError::NoToken(_)),
            "{content:?}: {error}"
        );
    }
}

#[test]
fn a_file_longer_than_any_token_is_refused_and_not_cut() {
    let longest = vec![b't'; usize::try_from(LONGEST).unwrap()];
    assert!(read(file(&longest, 0o600).path()).is_ok());
    let longer = [&longest[..], b"t"].concat();
    let error = read(file(&longer, 0o600).path()).unwrap_err();
    assert!(matches!(error, SecretError::TooLong(_)), "{error}");
}

#[test]
fn a_token_file_that_others_can_replace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    fs_err::rename(
        file(b"s3cret\n", 0o600).into_temp_path().keep().unwrap(),
        &path,
    )
    .unwrap();
    for (mode, is_taken) in [
        (0o777, false),
        (0o770, false),
        (0o1777, true),
        (0o755, true),
    ] {
        fs_err::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        match read(&path) {
            Ok(_) => assert!(is_taken, "{mode:o}"),
            Err(SecretError::Place(_)) => assert!(!is_taken, "{mode:o}"),
            Err(error) => panic!("{mode:o}: {error}"),
        }
    }
}

#[test]
fn what_is_not_a_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path()), Err(SecretError::NotAFile(_))));
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(read(&fifo), Err(SecretError::NotAFile(_))));
    assert!(matches!(
        read(&dir.path().join("none")),
        Err(SecretError::Unreadable(_))
    ));
}

#[test]
fn a_token_file_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give a file away.
        return;
    }
    let file = file(b"s3cret\n", 0o600);
    std::os::unix::fs::chown(file.path(), Some(54_321), None).unwrap();
    assert!(matches!(
        read(file.path()),
        Err(SecretError::Owner { owner: 54_321, .. })
    ));
}

#[test]
fn a_secret_does_not_show() {
    let secret = parse("s3cret\n").unwrap();
    assert_eq!(format!("{secret:?}"), "Secret([redacted])");
    assert_eq!(secret.redact("bad token s3cret!"), "bad token [token]!");
}
