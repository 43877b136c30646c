//! What a rule looks at a registry with.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Display,
    future::IntoFuture,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::{future::BoxFuture, stream};
use hyper::{Method, StatusCode};
use serde_json::Value;
use shoal_proto::digest::Algorithm;
use tokio::sync::OnceCell;

use super::{
    data::{Content, DataSet, noise},
    push, skip,
};
use crate::http::{self, Client, Reply};

/// Exchanges that are kept of a rule, the last ones.
const EXCHANGES_MAX: usize = 24;
/// Characters of a body that are shown.
const EXCERPT_LEN: usize = 300;
/// Bytes that a streamed body is handed on in.
const STREAMED_CHUNK_LEN: usize = 3000;

/// A repository that several rules read, made by the first that wants it.
type Pending = Arc<OnceCell<Result<String, String>>>;

/// What the rules of one run share.
#[derive(Debug)]
pub(super) struct World {
    client: Client,
    /// Part of every repository's name, so that no run sees what another left.
    run: String,
    stocks: Mutex<BTreeMap<String, Pending>>,
}

impl World {
    pub(super) fn new(authority: &str) -> Arc<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = format!("conformance/{:x}-{:x}", since.as_micros(), std::process::id());
        Arc::new(Self { client: Client::new(authority), run, stocks: Mutex::default() })
    }

    pub(super) async fn greet(&self) -> Result<()> {
        self.client.fetch(Method::GET, "/v2/", &[]).await.map(drop)
    }

    fn stock(&self, label: &str) -> Arc<OnceCell<Result<String, String>>> {
        let mut stocks = self.stocks.lock().expect("nobody panics while holding the stocks");
        Arc::clone(stocks.entry(label.to_owned()).or_default())
    }
}

/// A data set that lies in the registry, to be read only.
#[derive(Debug)]
pub struct Stock {
    /// The repository that holds it.
    pub repository: String,
    /// What it holds.
    pub set: Arc<DataSet>,
}

impl Stock {
    /// A path below the stock's repository.
    #[must_use]
    pub fn at(&self, rest: impl Display) -> String {
        format!("/v2/{}/{rest}", self.repository)
    }
}

/// What a rule is given: a client, a repository of its own, and content that no other rule has.
#[derive(Debug, Clone)]
pub struct Probe {
    world: Arc<World>,
    rule: Arc<str>,
    repository: Arc<str>,
    others: Arc<AtomicUsize>,
    exchanges: Arc<Mutex<VecDeque<String>>>,
}

impl Probe {
    pub(super) fn new(world: &Arc<World>, number: usize, rule: &str) -> Self {
        Self {
            world: Arc::clone(world),
            rule: rule.into(),
            repository: format!("{}/r{number}", world.run).into(),
            others: Arc::default(),
            exchanges: Arc::default(),
        }
    }

    /// The rule's own repository; nothing is in it yet.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The name of another empty repository; each call gives a new one.
    #[must_use]
    pub fn another(&self) -> String {
        format!("{}-{}", self.repository, self.others.fetch_add(1, Ordering::Relaxed))
    }

    /// A path below the rule's repository.
    #[must_use]
    pub fn at(&self, rest: impl Display) -> String {
        format!("/v2/{}/{rest}", self.repository)
    }

    /// The registry's address, for what a client cannot say.
    ///
    /// # Errors
    /// It is no address.
    pub async fn address(&self) -> Result<std::net::SocketAddr> {
        let authority = self.world.client.authority();
        tokio::net::lookup_host(authority).await?.next().with_context(|| format!("no address of {authority}"))
    }

    /// Bytes of this rule alone, named by SHA-256; another `name` gives others.
    #[must_use]
    pub fn noise(&self, name: &str, len: usize) -> Content {
        self.noise_by(Algorithm::Sha256, name, len)
    }

    /// [`Probe::noise`] under another algorithm.
    #[must_use]
    pub fn noise_by(&self, algorithm: Algorithm, name: &str, len: usize) -> Content {
        Content::new(algorithm, noise(&format!("{}{}{name}", self.repository, self.rule), len))
    }

    /// A request.
    #[must_use]
    pub fn ask(&self, method: Method, target: impl Into<String>) -> Ask {
        Ask { probe: self.clone(), method, target: target.into(), headers: Vec::new(), body: None, streamed: false }
    }

    /// A GET.
    #[must_use]
    pub fn get(&self, target: impl Into<String>) -> Ask {
        self.ask(Method::GET, target)
    }

    /// A HEAD.
    #[must_use]
    pub fn head(&self, target: impl Into<String>) -> Ask {
        self.ask(Method::HEAD, target)
    }

    /// A POST.
    #[must_use]
    pub fn post(&self, target: impl Into<String>) -> Ask {
        self.ask(Method::POST, target)
    }

    /// A PUT.
    #[must_use]
    pub fn put(&self, target: impl Into<String>) -> Ask {
        self.ask(Method::PUT, target)
    }

    /// A PATCH.
    #[must_use]
    pub fn patch(&self, target: impl Into<String>) -> Ask {
        self.ask(Method::PATCH, target)
    }

    /// A DELETE.
    #[must_use]
    pub fn delete(&self, target: impl Into<String>) -> Ask {
        self.ask(Method::DELETE, target)
    }

    /// The repository that holds `set`, which is pushed when the first rule asks for it.
    ///
    /// # Errors
    /// The registry does not take it: the rule is skipped.
    pub async fn stock(&self, set: &Arc<DataSet>) -> Result<Stock> {
        let label = set.label();
        let pushed = self.push_stock(set).await;
        let repository = pushed.map_err(|_| skip(format!("the registry does not take {label} (push/set/{label})")))?;
        Ok(Stock { repository, set: Arc::clone(set) })
    }

    /// Pushes `set` where every rule finds it, unless another rule has. Gives the repository.
    ///
    /// # Errors
    /// The registry does not take it, now or when it was first asked.
    pub async fn push_stock(&self, set: &Arc<DataSet>) -> Result<String> {
        let label = set.label();
        let cell = self.world.stock(&label);
        let pushed = cell
            .get_or_init(|| async {
                let repository = format!("{}/{}", self.world.run, label.replace('/', "-"));
                match push::set(self, &repository, set).await {
                    Ok(()) => Ok(repository),
                    Err(error) => Err(format!("{error:#}")),
                }
            })
            .await;
        pushed.clone().map_err(anyhow::Error::msg)
    }

    /// What was asked and answered last.
    pub(super) fn exchanges(&self) -> Vec<String> {
        self.protocol().iter().cloned().collect()
    }

    fn protocol(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.exchanges.lock().expect("nobody panics while holding the protocol")
    }

    fn note(&self, exchange: String) {
        let mut exchanges = self.protocol();
        if exchanges.len() == EXCHANGES_MAX {
            exchanges.pop_front();
        }
        exchanges.push_back(exchange);
    }
}

/// A request that is being made; awaited, it is sent.
#[derive(Debug)]
pub struct Ask {
    probe: Probe,
    method: Method,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Bytes>,
    streamed: bool,
}

impl Ask {
    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// With a media type.
    #[must_use]
    pub fn of_type(self, media_type: &str) -> Self {
        self.header("content-type", media_type)
    }

    /// With a body and its length.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// With a body of bytes that mean nothing to the registry.
    #[must_use]
    pub fn octets(self, body: impl Into<Bytes>) -> Self {
        self.of_type("application/octet-stream").body(body)
    }

    /// The body is sent in HTTP's chunks, its length untold.
    #[must_use]
    pub const fn streamed(mut self) -> Self {
        self.streamed = true;
        self
    }

    fn head(&self) -> String {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| format!("{name}: {}", excerpt(value))).collect();
        let body = self.body.as_ref().map_or_else(String::new, |body| format!(" +{} bytes", body.len()));
        let how = if self.streamed { " streamed" } else { "" };
        format!("{} {} [{}]{body}{how}", self.method, excerpt(&self.target), headers.join(", "))
    }

    async fn send(self) -> Result<Answer> {
        let asked = self.head();
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let bytes = self.body.unwrap_or_default();
        let body = if self.streamed {
            let parts: Vec<_> = bytes.chunks(STREAMED_CHUNK_LEN).map(|part| Ok(bytes.slice_ref(part))).collect();
            http::streamed(stream::iter(parts))
        } else {
            http::full(bytes)
        };
        let client = &self.probe.world.client;
        let replied = async { http::collect(client.send(self.method, &self.target, &headers, body).await?).await };
        match replied.await {
            Ok(reply) => {
                let answer = Answer { asked, reply };
                self.probe.note(answer.told());
                Ok(answer)
            }
            Err(error) => {
                self.probe.note(format!("{asked} -> {error:#}"));
                Err(error.context(asked))
            }
        }
    }
}

impl IntoFuture for Ask {
    type Output = Result<Answer>;
    type IntoFuture = BoxFuture<'static, Result<Answer>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// An answer, and what it answers.
#[derive(Debug, Clone)]
pub struct Answer {
    asked: String,
    /// What came.
    pub reply: Reply,
}

impl Answer {
    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.reply.status.as_u16()
    }

    /// A header; empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.reply.header(name)
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.reply.body
    }

    /// Request and answer for people.
    #[must_use]
    pub fn told(&self) -> String {
        let headers: Vec<_> = self
            .reply
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", excerpt(&String::from_utf8_lossy(value.as_bytes()))))
            .collect();
        format!("{} -> {} [{}] {}", self.asked, self.status(), headers.join(", "), excerpt(&self.reply.text()))
    }

    /// It has this status.
    ///
    /// # Errors
    /// It has another.
    pub fn is(&self, status: u16) -> Result<&Self> {
        self.is_one_of(&[status])
    }

    /// It has one of these.
    ///
    /// # Errors
    /// It has another.
    pub fn is_one_of(&self, statuses: &[u16]) -> Result<&Self> {
        let wanted: Vec<_> = statuses.iter().map(u16::to_string).collect();
        let wanted = wanted.join(" or ");
        let (status, text) = (self.status(), self.reply.text());
        ensure!(statuses.contains(&status), "{}: {status}, not {wanted}; {}", self.asked, excerpt(&text));
        Ok(self)
    }

    /// It has this header, once, with this value.
    ///
    /// # Errors
    /// It is missing, another, or there more than once.
    pub fn says(&self, name: &str, value: impl Display) -> Result<&Self> {
        let found: Vec<_> = self.reply.headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("(bytes)")).collect();
        let value = value.to_string();
        ensure!(found == [value.as_str()], "{}: {name}: {found:?}, not {value:?}", self.asked);
        Ok(self)
    }

    /// It does not have this header.
    ///
    /// # Errors
    /// It has.
    pub fn lacks(&self, name: &str) -> Result<&Self> {
        ensure!(!self.reply.headers.contains_key(name), "{}: it says {name}: {}", self.asked, self.header(name));
        Ok(self)
    }

    /// Its body is exactly this.
    ///
    /// # Errors
    /// It is another.
    pub fn holds(&self, bytes: &[u8]) -> Result<&Self> {
        let found = self.body();
        if found != bytes {
            let same = found.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            bail!("{}: a body of {} bytes, not the {}; alike for {same}", self.asked, found.len(), bytes.len());
        }
        Ok(self)
    }

    /// It is an error of the specification: this status, a JSON body with at least one error, the first of which has
    /// one of `codes`.
    ///
    /// # Errors
    /// It is not.
    pub fn fails(&self, status: u16, codes: &[&str]) -> Result<()> {
        self.fails_with(&[status], codes)
    }

    /// [`Answer::fails`] with one of several statuses.
    ///
    /// # Errors
    /// It does not.
    pub fn fails_with(&self, statuses: &[u16], codes: &[&str]) -> Result<()> {
        self.is_one_of(statuses)?;
        let code = self.reply.error_code();
        let said = excerpt(&self.reply.text());
        ensure!(codes.contains(&code.as_str()), "{}: error code {code:?}, not {codes:?}; {said}", self.asked);
        Ok(())
    }

    /// It is refused: 4xx, and nothing broke.
    ///
    /// # Errors
    /// It is not.
    pub fn is_refused(&self) -> Result<&Self> {
        let refused = (400..500).contains(&self.status());
        ensure!(refused, "{}: {}, not refused; {}", self.asked, self.status(), excerpt(&self.reply.text()));
        Ok(self)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(self.body()).with_context(|| format!("{}: the body is no JSON", self.asked))
    }

    /// Where it points.
    ///
    /// # Errors
    /// There is no `Location`.
    pub fn location(&self) -> Result<String> {
        http::location(&self.reply.headers).with_context(|| self.asked.clone())
    }

    /// Where the next page is, if there is one.
    ///
    /// # Errors
    /// The `Link` is none.
    pub fn next_page(&self) -> Result<Option<String>> {
        let link = self.header("link");
        if link.is_empty() {
            return Ok(None);
        }
        let (target, rest) = link
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>'))
            .with_context(|| format!("{}: Link: {link}", self.asked))?;
        let next = rest.replace(' ', "");
        ensure!(next == ";rel=\"next\"" || next == ";rel=next", "{}: Link: {link}", self.asked);
        Ok(Some(target.to_owned()))
    }

    /// Whether it is a success.
    #[must_use]
    pub fn is_success(&self) -> bool {
        StatusCode::is_success(&self.reply.status)
    }
}

fn excerpt(text: &str) -> String {
    let clean: String = text.chars().take(EXCERPT_LEN).map(|c| if c.is_control() { '.' } else { c }).collect();
    if text.chars().nth(EXCERPT_LEN).is_some() { clean + "…" } else { clean }
}
