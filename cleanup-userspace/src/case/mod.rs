//! Cases: one dead run's cleanup, from detection to "seen clean".
//!
//! A case looks at the host, lets [`decide`] say what to do next, does that one
//! step, and looks again. Steps are idempotent: whatever is already so is a
//! success, and a case that is interrupted begins again by looking.

mod brake;
mod complaints;
mod crash;
mod death;
mod decide;
mod direct;
mod effects;
mod exclude;
mod glance;
mod ground;
mod hollow;
mod host;
mod ledger;
mod pod;
mod reaper;
mod record;
mod state;

pub use brake::{HeldBy, WINDOW, Word, WordFile};
pub use death::{Death, Origin, Proof, recorded_end};
pub use decide::{
    Directory, Facts, Outcome, Ownership, Policy, Step, Swept, Waiting, decide, may_remove,
};
pub use effects::{Look, Place, places};
pub use exclude::{Exclude, Glob, is_excluded};
pub use glance::{Glance, Seen};
pub use ground::Ground;
pub use host::{Agent, Host, STATE_AGE};
pub use ledger::{Ledger, close as close_account};
pub use pod::{Answer, Ask, Found, joined, key_of};
pub use reaper::{CaseMessage, Reaper};
pub use record::{CaseResult, Contained, Ending, Progress, Record, key_name, printable};
