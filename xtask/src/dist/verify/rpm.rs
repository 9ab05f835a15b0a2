//! The .rpm, by rpm, which comes as Debian's packages and is unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{CONFIG, HISTORY, MODULES, NEXT, PROGRAM, Trial};
use crate::dist::{Made, Release, TOOL_LIMIT, packages};
use crate::exec::Tool;
use crate::setup;
use crate::workspace;

const RPM: &str = "rpm";
/// Beneath the trial's root.
const DATABASE: &str = "/var/lib/rpm";
const NAME: &str = "compose-cleanup";

pub(super) fn tried(release: &Release, made: &Made, busybox: &Path) -> Result<String> {
    let rpm = match Rpm::find() {
        Ok(rpm) => rpm,
        Err(error) => {
            return Ok(format!(
                "the .rpm was not tried: there is no rpm: {error:#}"
            ));
        }
    };
    let trial = Trial::new(release.work.join("trial-rpm/root"), busybox)?;
    fs::create_dir_all(trial.root.join(DATABASE.trim_start_matches('/'))).context(DATABASE)?;
    let next = next_version(release, made)?;

    rpm.run(&trial, &["--install", "--nodeps"], &made.rpm)?;
    ensure!(trial.has(PROGRAM) && trial.has(MODULES), "not installed");
    trial.check_first_calls()?;
    // Sizes, sums, rights and owners of all files, by the package's own word.
    rpm.run(&trial, &["--verify", "--nodeps"], Path::new(NAME))?;
    let mine = trial.read(CONFIG)? + "grace = \"3s\"\n";
    trial.write(CONFIG, &mine)?;
    trial.write(HISTORY, "")?;

    rpm.run(&trial, &["--upgrade", "--nodeps"], &next)?;
    trial.check_upgrade_calls()?;
    ensure!(trial.read(CONFIG)? == mine, "{CONFIG} was overwritten");
    ensure!(
        trial.read(&format!("{CONFIG}.rpmnew"))?.ends_with(NEXT),
        "the new {CONFIG} is nowhere"
    );
    ensure!(trial.has(HISTORY), "an upgrade removed the history");

    rpm.run(&trial, &["--erase", "--nodeps"], Path::new(NAME))?;
    trial.check_last_calls()?;
    ensure!(
        trial.read(&format!("{CONFIG}.rpmsave"))? == mine,
        "the operator's {CONFIG} is gone"
    );
    ensure!(trial.has(HISTORY), "removed too much");
    for path in [
        PROGRAM,
        MODULES,
        "usr/lib/compose-cleanup",
        "usr/share/doc/compose-cleanup",
    ] {
        ensure!(!trial.has(path), "{path} is left");
    }
    Ok(
        "the .rpm was installed, verified, upgraded with a changed configuration and removed \
        in a directory of its own, where no systemd answers"
            .to_owned(),
    )
}

/// The same as a later release with another configuration. What the packers were given is
/// changed for that: the release itself is made.
fn next_version(release: &Release, made: &Made) -> Result<PathBuf> {
    let config = release.root().join(CONFIG);
    let text = fs::read_to_string(&config).context(CONFIG)?;
    fs::write(&config, text.clone() + NEXT).context(CONFIG)?;
    let manifest = release.work.join("package/Cargo.toml");
    let package = fs::read_to_string(&manifest).context("the packers' manifest")?;
    let table = "[package.metadata.generate-rpm]\n";
    ensure!(package.contains(table), "no {table:?} in the manifest");
    let later = package.replace(table, &format!("{table}release = \"2\"\n"));
    fs::write(&manifest, later).context("the packers' manifest")?;
    let next = release.work.join("next.rpm");
    let packed = packages::rpm(release, &made.tools, &next);
    // As it was, for whoever looks.
    fs::write(&config, text).context(CONFIG)?;
    fs::write(&manifest, package).context("the packers' manifest")?;
    packed?;
    Ok(next)
}

/// The program, as it has to be called.
struct Rpm {
    program: PathBuf,
    /// Where it is not installed: the folder into which its packages were unpacked.
    unpacked: Option<PathBuf>,
}

impl Rpm {
    /// The machine's own, else from target/tools, else from the mirror into that.
    fn find() -> Result<Self> {
        if let Some(program) = setup::find_program(RPM) {
            return Ok(Self {
                program,
                unpacked: None,
            });
        }
        let dir = workspace::target_dir().join("tools").join(RPM);
        Ok(Self {
            program: setup::unpacked(RPM, RPM, &dir)?,
            unpacked: Some(dir),
        })
    }

    fn run(&self, trial: &Trial, options: &[&str], what: &Path) -> Result<()> {
        let mut tool = Tool::new(&self.program, TOOL_LIMIT)
            .arg("--root")
            .arg(&trial.root)
            .args(["--dbpath", DATABASE])
            .args(options)
            .arg(what)
            // No settings of the user's.
            .env("HOME", &trial.root);
        if let Some(dir) = &self.unpacked {
            let library = |path: &str| dir.join(path).display().to_string();
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(library);
            tool = tool
                .env("LD_LIBRARY_PATH", libraries.join(":"))
                .env("RPM_CONFIGDIR", dir.join("usr/lib/rpm"));
        }
        tool.read()?;
        Ok(())
    }
}
