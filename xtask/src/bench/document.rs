//! The document that the whole benchmark writes: docs/performance.md and its charts.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::part::{Goal, Part};
use crate::exec::Tool;

/// The machine that everything was measured on, in one line.
#[derive(Debug)]
pub(super) struct Facts {
    kernel: String,
    processor: String,
    cpus: usize,
    memory_gib: u64,
    docker: String,
    date: String,
}

const LIMIT: Duration = Duration::from_secs(20);

impl Facts {
    pub(super) fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
        let processor = value_of(&read("/proc/cpuinfo")?, "model name").unwrap_or("unknown".into());
        let memory = value_of(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
        let kib: u64 = memory
            .trim_end_matches(" kB")
            .parse()
            .context("MemTotal in /proc/meminfo")?;
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim_end().to_owned(),
            processor,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib + (1 << 19)) >> 20,
            docker: first_line(Tool::new("dockerd", LIMIT).arg("--version"))?,
            date: first_line(Tool::new("date", LIMIT).arg("+%Y-%m-%d"))?,
        })
    }
}

/// What a program says, without its line's end.
fn first_line(tool: Tool) -> Result<String> {
    let said = tool.read()?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

/// The value of the first such line.
fn value_of(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

/// Writes the document to `path`, and its charts into a folder of the same name beside it.
pub(super) fn write(
    path: &Path,
    facts: &Facts,
    command: &str,
    parts: &[Part],
    failed: &[String],
) -> Result<()> {
    let folder = path.with_extension("");
    let charts = parts.iter().flat_map(|part| &part.charts);
    for chart in charts {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let file = folder.join(chart.name()).with_extension("svg");
        fs::write(&file, chart.svg()?).with_context(|| format!("writing {}", file.display()))?;
    }
    let beside = folder.file_name().unwrap_or_default().to_string_lossy();
    let text = render(facts, command, parts, failed, &beside);
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn render(facts: &Facts, command: &str, parts: &[Part], failed: &[String], folder: &str) -> String {
    let Facts {
        kernel,
        processor,
        cpus,
        memory_gib,
        docker,
        date,
    } = facts;
    let mut text = format!(
        "# Performance\n\n\
         Written by `{command}`; not to be edited. Everything was measured in one \
         run on one machine, what is compared in turns (A B A B …), so read ratios and differences, not \
         the times alone: another machine has others. Intervals are 95 % (bootstrap over the medians). A goal \
         that was missed stands here as missed.\n\n\
         Machine: Linux {kernel}, {cpus} CPUs ({processor}), {memory_gib} GiB; {docker}; {date}.\n",
    );
    // Writing to a String does not fail.
    for error in failed {
        let _ = writeln!(text, "\n**Not measured:** {error}");
    }
    let _ = writeln!(
        text,
        "\n## Goals\n\n{}",
        Goal::table(parts.iter().flat_map(|part| &part.goals))
            .markdown()
            .trim_end()
    );
    for part in parts {
        let Part {
            title,
            command,
            method,
            goals: _,
            tables,
            charts,
            notes,
        } = part;
        let _ = writeln!(text, "\n## {title}\n\n`{command}`\n\n{method}");
        for (caption, table) in tables {
            let _ = writeln!(text, "\n{caption}:\n\n{}", table.markdown().trim_end());
        }
        for chart in charts {
            let _ = writeln!(
                text,
                "\n![{}]({folder}/{}.svg)",
                chart.title(),
                chart.name()
            );
        }
        if !notes.is_empty() {
            text.push('\n');
        }
        for note in notes {
            let _ = writeln!(text, "- {note}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::part::tests::example;
    use super::*;

    fn facts() -> Facts {
        Facts {
            kernel: "6.18.0".into(),
            processor: "A processor".into(),
            cpus: 2,
            memory_gib: 24,
            docker: "Docker version 20.10.24".into(),
            date: "2026-11-28".into(),
        }
    }

    #[test]
    fn the_document_holds_goals_tables_and_charts_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("performance.md");
        let failed = ["bpftrace: not found".to_owned()];
        write(&path, &facts(), "cargo xtask bench", &[example()], &failed).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for piece in [
            "| thread | ≤ 1.2 × | 1.30 × | missed |",
            "| ours | 55 |",
            "`cargo xtask bench filter`",
            "**Not measured:** bpftrace: not found",
            "2 CPUs (A processor), 24 GiB",
        ] {
            assert!(text.contains(piece), "{piece}: {text}");
        }
        let (_, link) = text.split_once("![Cost of an exit](").unwrap();
        let (link, _) = link.split_once(')').unwrap();
        assert!(dir.path().join(link).is_file(), "{link}");
    }

    #[test]
    fn facts_are_those_of_this_machine() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(
            value_of(cpuinfo, "model name").as_deref(),
            Some("Some CPU @ 2 GHz")
        );
        assert_eq!(value_of(cpuinfo, "model"), None);
    }
}
