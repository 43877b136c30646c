//! Who may do what: the one place that every request passes.
//!
//! In open mode everybody may do everything. The question is asked all the same, with all that an answer needs (who, on
//! which repository, to do what), so that rules can take the place of the open answer without a handler noticing.

use http::HeaderMap;
use shoal_http::{ApiError, Peer};
use shoal_proto::name::Repository;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// Somebody who showed nothing.
    Anonymous,
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask whether this is a registry, and which fleet it serves.
    Greet,
    /// Read a repository.
    Pull,
    /// Write to a repository.
    Push,
    /// Delete from a repository.
    Delete,
    /// List the repositories.
    Catalog,
    /// Become a member of the fleet.
    Join,
}

/// The rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    open: bool,
}

impl Access {
    /// `open`: nodes join without a token. Reading and writing is open to whoever reaches the port, in any case: without
    /// `open` the port is reachable from this machine alone.
    #[must_use]
    pub const fn new(open: bool) -> Self {
        Self { open }
    }

    /// Whether nodes join without a token.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// Who sends a request.
    #[must_use]
    pub const fn subject(&self, _headers: &HeaderMap, _peer: Peer) -> Subject {
        Subject::Anonymous
    }

    /// Whether `subject` may do `action` on `repository` (none for what concerns no repository).
    ///
    /// # Errors
    /// It may not; as the client gets it.
    pub fn authorise(
        &self,
        subject: &Subject,
        repository: Option<&Repository>,
        action: Action,
    ) -> Result<(), ApiError> {
        match (subject, repository, action) {
            // A node that joins shows its token, and a member its membership, to the handler.
            (Subject::Anonymous, ..) => Ok(()),
        }
    }

    /// Whether anonymous clients may pull from `repository`: its tags are then served by peers as well.
    #[must_use]
    pub fn is_public(&self, repository: &Repository) -> bool {
        self.authorise(&Subject::Anonymous, Some(repository), Action::Pull).is_ok()
    }
}
