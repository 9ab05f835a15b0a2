//! What dead runs leave in Docker: stopped containers, and networks that nothing
//! uses any more. Looked for only where the configuration wants it removed.
//!
//! Everything follows from what exists: Docker's lists, and each run's death by
//! the usual rules. Whether a container ([`fate`]) or a network ([`is_left`]) may
//! go is decided by pure functions; [`Remains`] asks and removes.

mod containers;
mod networks;
mod round;
mod standing;
mod unused;

pub use containers::{Fate, Owner, Rules, Stay, Stopped, fate};
pub use networks::{Claim, NetworkFacts, Nominated, is_left, run_of_project};
pub use round::Remains;
pub use standing::{Question, Standing};
