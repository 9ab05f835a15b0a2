//! Colour, on a terminal only.

use std::io::IsTerminal as _;

/// What a word means to whoever reads it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tone {
    Good,
    Attention,
    Bad,
    Heading,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    on: bool,
}

impl Paint {
    /// For standard output, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn of_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            on: std::io::stdout().is_terminal() && !unwanted,
        }
    }

    #[cfg(test)]
    pub(super) const OFF: Self = Self { on: false };

    /// The text has its width already: escapes take none.
    pub(super) fn tone(self, tone: Tone, text: &str) -> String {
        if !self.on {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Attention => "33",
            Tone::Bad => "31",
            Tone::Heading => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
