//! Who may do what: the one place that every request passes.
//!
//! Without rules everybody who reaches the port may do everything; without `open` it is reachable from this machine alone.
//! With rules ([`Users`]) nobody may do what it was not given, and what is private looks the same as what does not exist.

use std::sync::Arc;

use http::HeaderMap;
use shoal_http::ApiError;
use shoal_proto::{name::Repository, oci::ErrorCode};

use crate::users::{Grants, Pattern, Subject, Users};

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask which fleet this registry serves.
    Greet,
    /// Ask whether one may come in: what `docker login` asks.
    Login,
    /// Read a repository.
    Pull,
    /// Write to a repository.
    Push,
    /// Delete from a repository.
    Delete,
    /// List the repositories.
    Catalog,
    /// Become a member of the fleet, or act as one: the handler looks at token and membership.
    Join,
}

/// The rules.
#[derive(Debug, Clone)]
pub struct Access {
    open: bool,
    /// None: everybody may do everything.
    users: Option<Arc<Users>>,
}

impl Access {
    /// `open`: nodes join without a token, and everybody may do everything. `users`: what they may do, where that is asked.
    #[must_use]
    pub fn new(open: bool, users: Option<Arc<Users>>) -> Self {
        Self { open, users: users.filter(|_| !open) }
    }

    /// Whether nodes join without a token.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// A token that says the same as what `subject` has shown.
    ///
    /// # Errors
    /// It has shown what is no user's, or nothing where nothing is public.
    pub fn token(&self, subject: &Subject) -> Result<String, ApiError> {
        let users = self.users.as_ref().ok_or_else(|| unauthorised("this registry asks for no token"))?;
        users.token(subject).ok_or_else(|| wrong(subject))
    }

    /// Who sends a request.
    #[must_use]
    pub fn subject(&self, headers: &HeaderMap) -> Subject {
        self.users.as_ref().map_or(Subject::Anonymous, |users| users.subject(headers))
    }

    /// Whether `subject` may do `action` on `repository` (none for what concerns no repository).
    ///
    /// # Errors
    /// It may not; as the client gets it. Whether the repository exists is not told.
    pub fn authorise(
        &self,
        subject: &Subject,
        repository: Option<&Repository>,
        action: Action,
    ) -> Result<(), ApiError> {
        let Some(users) = &self.users else { return Ok(()) };
        let of: fn(&Grants) -> Vec<&Pattern> = match action {
            Action::Greet | Action::Join => return Ok(()),
            Action::Login if matches!(subject, Subject::User(_)) => return Ok(()),
            Action::Login => |_| Vec::new(),
            // Whoever pushes asks first what is there.
            Action::Pull | Action::Catalog => |grants| grants.pull.iter().chain(&grants.push).collect(),
            Action::Push => |grants| grants.push.iter().collect(),
            Action::Delete => |grants| grants.delete.iter().collect(),
        };
        if users.may(subject, repository, of) {
            return Ok(());
        }
        Err(wrong(subject))
    }

    /// Whether anonymous clients may pull from `repository`: peers then hand it on to any member.
    #[must_use]
    pub fn is_public(&self, repository: &Repository) -> bool {
        self.authorise(&Subject::Anonymous, Some(repository), Action::Pull).is_ok()
    }
}

fn wrong(subject: &Subject) -> ApiError {
    match subject {
        Subject::Anonymous => unauthorised("log in to this registry"),
        Subject::Wrong => unauthorised("no user has that name and password, or the token has ended"),
        Subject::User(_) => ApiError::new(ErrorCode::Denied, "this user may not do that"),
    }
}

/// Without the challenge, which says where the client is.
fn unauthorised(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, message)
}
