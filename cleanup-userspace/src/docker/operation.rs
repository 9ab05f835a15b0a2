//! What is asked of Docker, by its name in the metrics.

/// What is asked of Docker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Ping,
    Info,
    Stop,
    Kill,
    Remove,
    Inspect,
    List,
    ListNetworks,
    RemoveNetwork,
}

impl Operation {
    pub const ALL: [Self; 9] = [
        Self::Ping,
        Self::Info,
        Self::Stop,
        Self::Kill,
        Self::Remove,
        Self::Inspect,
        Self::List,
        Self::ListNetworks,
        Self::RemoveNetwork,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Info => "info",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Remove => "remove",
            Self::Inspect => "inspect",
            Self::List => "list",
            Self::ListNetworks => "list_networks",
            Self::RemoveNetwork => "remove_network",
        }
    }
}
