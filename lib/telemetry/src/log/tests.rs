use super::*;

#[test]
fn libraries_are_quiet_until_trace_is_asked_for() {
    let shown = |verbosity| filter(verbosity).to_string();
    assert!(shown(0).contains("runner=info") && shown(0).contains("warn"));
    assert!(shown(1).contains("runner=debug") && !shown(1).contains(",debug"));
    assert!(shown(2).contains("runner=trace") && shown(2).contains("debug"));
    assert_eq!(shown(2), shown(200));
}

#[test]
fn each_of_our_programs_is_heard_without_being_asked_to_speak_up() {
    let shown = filter(0).to_string();
    for program in ["runner", "cleanslate", "provisioner"] {
        assert!(shown.contains(&format!("{program}=info")), "{shown}");
    }
}

#[test]
fn a_pipe_or_a_file_is_not_the_journal() {
    // Tests run with standard error on a pipe, a file or a terminal.
    assert!(!is_journal());
}
