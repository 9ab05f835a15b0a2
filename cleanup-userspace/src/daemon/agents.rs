//! Notices what an agent is doing, and that it has come back: what it left undone
//! may be done now.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::core::Message;
use crate::case::{Host, STATE_AGE};
use crate::mesos::{AgentSign, AgentState};
use crate::registry::AgentIndex;

/// How often an agent is looked at that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same while a silence is being listened to: longer breaks prove nothing.
const LISTEN_EVERY: Duration = Duration::from_secs(1);

/// Follows one agent for as long as the daemon runs: while it is at work, by waiting for
/// the end of its process.
pub async fn follow_agent(host: Arc<Host>, agent: AgentIndex, sender: UnboundedSender<Message>) {
    let mut last = None;
    while !sender.is_closed() {
        let looked = Arc::clone(&host);
        // Reads `/proc`.
        let look = move || (looked.agents[agent].state(), looked.agents[agent].sign());
        let Ok((state, sign)) = tokio::task::spawn_blocking(look).await else {
            return;
        };
        let before = last.replace(state);
        let mut news = Vec::new();
        if before != Some(state) {
            news.push(Message::AgentState(agent, state));
        }
        if is_back(before, state) {
            news.push(Message::AgentBack(agent));
        }
        if news.into_iter().any(|news| sender.send(news).is_err()) {
            return;
        }
        tokio::select! {
            () = until_next_look(state, sign) => {}
            () = sender.closed() => return,
        }
    }
}

async fn until_next_look(state: AgentState, sign: AgentSign) {
    let pause = match (state, sign) {
        (AgentState::Alive, AgentSign::Process(process)) => match process.end().await {
            // Until then an earlier look may be taken for the next.
            Ok(()) => STATE_AGE,
            Err(_) => LOOK_EVERY,
        },
        (AgentState::Alive, AgentSign::Silence) => LISTEN_EVERY,
        _ => LOOK_EVERY,
    };
    tokio::time::sleep(pause).await;
}

/// At the start nothing is known of before, and everything is looked at anyway.
fn is_back(before: Option<AgentState>, now: AgentState) -> bool {
    now == AgentState::Alive && before.is_some_and(|before| before != AgentState::Alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_away_comes_back() {
        use AgentState::{Absent, Alive, Recovering};
        for (before, now, back) in [
            (None, Alive, false),
            (Some(Alive), Alive, false),
            (Some(Absent), Alive, true),
            (Some(Recovering), Alive, true),
            (Some(Absent), Recovering, false),
            (Some(Alive), Absent, false),
        ] {
            assert_eq!(is_back(before, now), back, "{before:?} {now:?}");
        }
    }
}
