use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("test.toml")).map_err(|error| error.to_string())
}

#[test]
fn empty_is_the_default_and_observes() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.mode, Mode::Observe);
}

#[test]
fn deaths_are_noticed_by_ebpf_unless_something_else_is_asked_for() {
    assert_eq!(parse("").unwrap().probe, ProbeChoice::Ebpf);
    for (name, choice) in [
        ("ebpf", ProbeChoice::Ebpf),
        ("poll", ProbeChoice::Poll),
        ("auto", ProbeChoice::Auto),
    ] {
        let text = format!("probe = \"{name}\"\nebpf.ring_bytes = 8192");
        assert_eq!(parse(&text).unwrap().probe, choice);
    }
}

#[test]
fn the_inbox_is_in_the_run_directory_unless_it_is_named() {
    assert_eq!(
        parse("").unwrap().inbox_dir(),
        Path::new("/run/compose-cleanup/inbox")
    );
    let moved = parse("run_dir = \"/r\"").unwrap();
    assert_eq!(moved.inbox_dir(), Path::new("/r/inbox"));
    let named = parse("run_dir = \"/r\"\ninbox = \"/i\"").unwrap();
    assert_eq!(named.inbox_dir(), Path::new("/i"));
}

#[test]
fn a_whole_file() {
    let config = parse(
        r#"
        mode = "enforce"
        action = "remove"
        grace = "2s 500ms"
        [docker]
        socket = "/run/d.sock"
        [[agents]]
        work_dir = "/var/lib/mesos"
        cgroups_root = "a/b"
        "#,
    )
    .unwrap();
    assert_eq!(config.grace, Duration::from_millis(2500));
    assert_eq!(config.agents[0].runtime_dir, Path::new("/var/run/mesos"));
    assert_eq!(config.agents[0].cgroups_root.as_path(), Path::new("a/b"));
}

#[test]
fn the_shipped_example_is_the_default() {
    let path = Path::new("deploy/config.toml");
    assert_eq!(Config::parse(EXAMPLE, path).unwrap(), Config::default());
    // With every comment mark taken from its keys, it is valid, too.
    let all: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n");
    Config::parse(&all, path).unwrap();
}

#[test]
fn what_is_removed_has_to_be_asked_for() {
    let config = parse("").unwrap();
    assert!(!config.removes_remains() && config.keep_label);
    assert_eq!(config.anonymous_volumes, AnonymousVolumes::Keep);
    // With their containers, and only then.
    for how in ["action = \"remove\"", "remove_after = \"7d\""] {
        let config = parse(&format!("{how}\nanonymous_volumes = \"remove\"")).unwrap();
        assert_eq!(config.anonymous_volumes, AnonymousVolumes::Remove);
    }
    let config = parse("remove_after = \"0s\"\nkeep_label = false").unwrap();
    assert_eq!(config.remove_after, Some(Duration::ZERO));
    assert!(config.removes_remains() && !config.keep_label);
    let config = parse("networks = \"remove-if-empty\"").unwrap();
    assert!(config.removes_remains());
    assert_eq!(config.networks, Networks::RemoveIfEmpty);
}

#[test]
fn an_unknown_key_is_refused_with_its_place() {
    let error = parse("mode = \"enforce\"\ngrase = \"1s\"\nmodus = 1\n").unwrap_err();
    assert!(
        error.contains(":2:1: `grase`") && error.contains("`grace`"),
        "{error}"
    );
    assert!(error.contains("1 more") && !error.contains('\n'), "{error}");
}

#[test]
fn metrics_are_for_this_host_unless_others_may_read_them() {
    assert_eq!(parse("").unwrap().metrics.listen, None);
    for address in [
        "127.0.0.1:9109",
        "127.9.9.9:0",
        "[::1]:9109",
        "[::ffff:127.0.0.1]:9109",
    ] {
        let config = parse(&format!("[metrics]\nlisten = {address:?}")).unwrap();
        assert_eq!(config.metrics.listen, Some(address.parse().unwrap()));
    }
    parse("[metrics]\nlisten = \"0.0.0.0:9109\"\nallow_remote = true").unwrap();
}

#[test]
fn wrong_values_are_refused_with_their_key() {
    for (text, key) in [
        ("mode = \"yes\"", "mode"),
        ("run_dir = \"run\"", "`run_dir`"),
        ("inbox = \"inbox\"", "`inbox`"),
        ("grace = \"soon\"", "grace"),
        ("grace = \"2h\"", "`grace`"),
        ("reconcile_interval = \"1s\"", "`reconcile_interval`"),
        ("remove_after = \"later\"", "remove_after"),
        ("remove_after = 60", "remove_after"),
        ("networks = \"remove\"", "networks"),
        ("keep_label = \"no\"", "keep_label"),
        ("anonymous_volumes = true", "anonymous_volumes"),
        ("anonymous_volumes = \"remove\"", "`anonymous_volumes`"),
        (
            "action = \"kill\"\nnetworks = \"remove-if-empty\"\nanonymous_volumes = \"remove\"",
            "remove_after",
        ),
        ("[docker]\nsocket = \"docker.sock\"", "`docker.socket`"),
        ("[ebpf]\nring_bytes = 5000", "`ebpf.ring_bytes`"),
        ("probe = \"bpf\"", "`probe` to be"),
        ("[probe]\nring_bytes = 4096", "are in [ebpf]"),
        ("[journal]\npath = \"journal.db\"", "`journal.path`"),
        ("[journal]\npath = \"/\"", "`journal.path`"),
        ("[journal]\nmax_bytes = 1000", "`journal.max_bytes`"),
        ("[journal]\nmax_age = \"long\"", "max_age"),
        ("[metrics]\nlisten = \"localhost:9109\"", "listen"),
        ("[metrics]\nlisten = \"127.0.0.1\"", "listen"),
        ("[metrics]\nlisten = \"0.0.0.0:9109\"", "`metrics.listen`"),
        ("[metrics]\nlisten = \"[::]:9109\"", "`metrics.listen`"),
        ("[metrics]\nlisten = \"192.0.2.1:9109\"", "allow_remote"),
        ("[[agents]]\nwork_dir = \"work\"", "`agents[0].work_dir`"),
        ("[[exclude]]\nexecutor = \"a[\"", "`a[`"),
        ("[[exclude]]", "`exclude[0]`"),
        (
            "[[agents]]\nwork_dir = \"/w\"\ncgroups_root = \"../x\"",
            "cgroups root",
        ),
        ("[[agents]]\nruntime_dir = \"/w\"", "work_dir"),
        (
            "[[agents]]\nwork_dir = \"/w\"\n[[agents]]\nwork_dir = \"/w\"\nruntime_dir = \"/x\"",
            "`agents[1]`",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
    }
}
