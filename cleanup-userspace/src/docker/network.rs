//! What Docker says of a network that compose made.

use bollard::models::Network;

use super::container::PROJECT_LABEL;

/// Compose gives it to the networks that it makes, never to external ones.
pub const NETWORK_LABEL: &str = "com.docker.compose.network";

/// A network of a compose project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeNetwork {
    pub id: String,
    pub name: String,
    pub project: String,
}

impl ComposeNetwork {
    /// `None` for every network that compose did not make on this host, whatever
    /// Docker was asked for.
    pub fn from_list(listed: &Network) -> Option<Self> {
        let labels = listed.labels.as_ref()?;
        let name = listed.name.clone()?;
        let predefined = ["bridge", "host", "none"].contains(&name.as_str());
        let local = listed.scope.as_deref() == Some("local") && listed.ingress != Some(true);
        (local && !predefined && labels.contains_key(NETWORK_LABEL)).then_some(Self {
            id: listed.id.clone().filter(|id| !id.is_empty())?,
            project: labels.get(PROJECT_LABEL)?.clone(),
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn network(name: &str, scope: &str, labels: &[&str]) -> Network {
        Network {
            id: Some("id".to_owned()),
            name: Some(name.to_owned()),
            scope: Some(scope.to_owned()),
            labels: Some(
                labels
                    .iter()
                    .map(|&label| (label.to_owned(), "app".to_owned()))
                    .collect::<HashMap<_, _>>(),
            ),
            ..Network::default()
        }
    }

    #[test]
    fn only_what_compose_made_here() {
        let both = [NETWORK_LABEL, PROJECT_LABEL];
        let found = ComposeNetwork::from_list(&network("app_default", "local", &both)).unwrap();
        assert_eq!(found.project, "app");
        for other in [
            network("app_default", "local", &[]),
            network("app_default", "local", &[NETWORK_LABEL]),
            network("app_default", "local", &[PROJECT_LABEL]),
            network("app_default", "swarm", &both),
            network("bridge", "local", &both),
            network("host", "local", &both),
            network("none", "local", &both),
            Network {
                id: None,
                ..network("app_default", "local", &both)
            },
            Network {
                ingress: Some(true),
                ..network("app_default", "local", &both)
            },
            Network::default(),
        ] {
            assert_eq!(ComposeNetwork::from_list(&other), None, "{other:?}");
        }
    }
}
