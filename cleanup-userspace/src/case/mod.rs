//! Cases: one dead run's cleanup, from detection to "seen clean".
//!
//! A case looks at the host, lets [`decide`] say what to do next, does that one
//! step, and looks again. Steps are idempotent: whatever is already so is a
//! success, and a case that is interrupted begins again by looking.

mod death;
mod decide;
mod effects;
mod host;
mod pod;
mod reaper;
mod record;

pub use death::{Death, Origin};
pub use decide::{Directory, Facts, Outcome, Ownership, Policy, Step, Swept, Waiting, decide};
pub use host::{Agent, Host};
pub use reaper::{CaseMessage, Reaper, key_of};
pub use record::{CaseResult, Contained, Ending, Progress, Record, printable};
