//! `compose-cleanup config`, `completions` and the manual pages: they touch nothing,
//! need no rights, and say everything in one run.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use cleanup_tests::bins;
use cleanup_tests::scratch::Scratch;
use serde_json::Value;

const VALID: i32 = 0;
const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;

struct Answer {
    status: i32,
    stdout: String,
    stderr: String,
}

fn run(arguments: &[&str]) -> Result<Answer> {
    let mut command = Command::new(bins::find("compose-cleanup")?);
    let Output {
        status,
        stdout,
        stderr,
    } = command.args(arguments).output().context("running it")?;
    let answer = Answer {
        status: status.code().context("it was killed")?,
        stdout: String::from_utf8(stdout).context("its output")?,
        stderr: String::from_utf8(stderr).context("its errors")?,
    };
    ensure!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
    Ok(answer)
}

#[track_caller]
fn expect(answer: &Answer, status: i32) {
    let Answer { stdout, stderr, .. } = answer;
    assert_eq!(answer.status, status, "{stdout}{stderr}");
}

#[test]
fn check_says_everything_in_one_run() -> Result<()> {
    let scratch = Scratch::new("config-check")?;
    let path = scratch.path().join("config.toml");
    let file = path.to_str().context("UTF-8")?;
    let check = ["config", "check", "--config", file];

    let missing = run(&check)?;
    expect(&missing, FAILURE);
    assert_eq!(missing.stderr.lines().count(), 1, "{}", missing.stderr);
    assert!(missing.stderr.contains(file) && missing.stderr.contains("No such file"));

    fs::write(&path, "mode = \"enforce\"\n")?;
    let valid = run(&check)?;
    expect(&valid, VALID);
    assert_eq!(valid.stdout, format!("{file}: valid\n"));

    fs::write(
        &path,
        "mdoe = \"enforce\"\ngrace = \"2 fortnights\"\n[docker]\nsocket = \"docker.sock\"\n",
    )?;
    let refused = run(&check)?;
    expect(&refused, REFUSED);
    let lines: Vec<&str> = refused.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", refused.stdout);
    for (line, (place, words)) in lines.iter().zip([
        ("1:1: `mdoe`", "did you mean `mode`?"),
        ("2:1: `grace`", "fortnights"),
        ("4:1: `docker.socket`", "absolute"),
    ]) {
        assert!(line.starts_with(&format!("{file}:{place}")), "{line}");
        assert!(line.contains(words), "{line}");
    }
    // The daemon is of the same opinion.
    expect(&run(&["watch", "--config", file])?, FAILURE);

    let told = run(&[&check[..], &["--output", "json"]].concat())?;
    expect(&told, REFUSED);
    let report: Value = serde_json::from_str(&told.stdout)?;
    assert_eq!(report["valid"], false, "{report}");
    assert_eq!(report["problems"][0]["key"], "mdoe", "{report}");
    assert_eq!(report["problems"][1]["line"], 2, "{report}");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(3));

    fs::write(&path, b"mode = \"\xff\"")?;
    expect(&run(&check)?, FAILURE);
    expect(&run(&["config", "chekc"])?, USAGE);
    Ok(())
}

/// What is printed is a file that says the same.
#[test]
fn print_tells_what_a_watch_would_run_with() -> Result<()> {
    let scratch = Scratch::new("config-print")?;
    let path = scratch.path().join("config.toml");
    let file = path.to_str().context("UTF-8")?;
    fs::write(
        &path,
        "remove_after = \"7d\"\nrun_dir = \"/run/other\"\n[[exclude]]\nexecutor = \"db-*\"\n\
         [[agents]]\nwork_dir = \"/w\"\ncgroups_root = \"a/b\"\n",
    )?;
    let print = ["config", "print", "--config", file, "--mode", "enforce"];
    let printed = run(&print)?;
    expect(&printed, 0);
    let json = |arguments: &[&str]| -> Result<Value> {
        let answer = run(&[arguments, &["--output", "json"]].concat())?;
        expect(&answer, 0);
        Ok(serde_json::from_str(&answer.stdout)?)
    };
    let told = json(&print)?;
    assert_eq!(told["mode"], "enforce", "{told}");
    assert_eq!(told["remove_after"], "7days", "{told}");
    assert_eq!(told["inbox"], "/run/other/inbox", "{told}");
    assert_eq!(told["grace"], "10s", "{told}");
    assert_eq!(told["agents"][0]["runtime_dir"], "/var/run/mesos", "{told}");

    fs::write(&path, &printed.stdout)?;
    assert_eq!(json(&["config", "print", "--config", file])?, told);
    expect(&run(&["config", "check", "--config", file])?, VALID);

    // And so is the example, which is the default.
    let example = run(&["config", "example"])?;
    expect(&example, 0);
    fs::write(&path, &example.stdout)?;
    expect(&run(&["config", "check", "--config", file])?, VALID);
    let defaults = json(&["config", "print"])?;
    assert_eq!(json(&["config", "print", "--config", file])?, defaults);
    assert_eq!(defaults["mode"], "observe");
    Ok(())
}

/// The names of the commands that help shows.
fn commands() -> Result<BTreeSet<String>> {
    let help = run(&["--help"])?;
    let list = help
        .stdout
        .split_once("Commands:\n")
        .context("a list of commands")?
        .1;
    Ok(list
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect())
}

#[test]
fn completions_know_every_command() -> Result<()> {
    let commands = commands()?;
    assert!(commands.contains("watch") && !commands.contains("man"));
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell])?;
        expect(&script, 0);
        for command in &commands {
            assert!(script.stdout.contains(command), "{shell}: no {command}");
        }
    }
    let wrong = run(&["completions", "cmd.exe"])?;
    expect(&wrong, USAGE);
    assert!(wrong.stderr.contains("bash"), "{}", wrong.stderr);

    // Bash takes it, and proposes.
    let mut script = run(&["completions", "bash"])?.stdout;
    let function = script
        .rsplit_once("complete -F ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .context("what bash calls")?
        .to_owned();
    script += &format!(
        "\nCOMP_WORDS=(compose-cleanup wa); COMP_CWORD=1\n\
         {function} compose-cleanup wa compose-cleanup\necho \"<${{COMPREPLY[*]}}>\"\n"
    );
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting bash")?;
    bash.stdin
        .take()
        .context("its input")?
        .write_all(script.as_bytes())?;
    let output = bash.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("<watch>"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn every_command_has_a_manual_page() -> Result<()> {
    let scratch = Scratch::new("man")?;
    let directory = scratch.path().to_str().context("UTF-8")?;
    expect(&run(&["man", directory])?, 0);
    let mut pages = BTreeSet::new();
    for entry in fs::read_dir(scratch.path())? {
        let path = entry?.path();
        let page = fs::read_to_string(&path)?;
        assert!(page.contains(".SH NAME"), "{}", path.display());
        let name = path.file_name().context("a name")?;
        pages.insert(name.to_str().context("UTF-8")?.to_owned());
    }
    assert!(pages.contains("compose-cleanup.1"), "{pages:?}");
    assert!(
        pages.contains("compose-cleanup-config-check.1"),
        "{pages:?}"
    );
    assert!(!pages.contains("compose-cleanup-man.1"), "{pages:?}");
    for command in commands()? {
        let page = format!("compose-cleanup-{command}.1");
        assert!(pages.contains(&page), "no {page} in {pages:?}");
    }
    let nowhere = run(&["man", "/nonexistent"])?;
    expect(&nowhere, FAILURE);
    assert_eq!(nowhere.stderr.lines().count(), 1, "{}", nowhere.stderr);
    Ok(())
}
