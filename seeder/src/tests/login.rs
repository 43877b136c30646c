//! How clients log in: turned away, told where a token is, let in by it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::client::{Got, TestSeeder};
use crate::members::order::Order;

const PRIVATE: &str = "/v2/team/app/tags/list";
const PUBLIC: &str = "/v2/public/app/tags/list";

async fn seeder(public: bool) -> (TestSeeder, String) {
    let seeder = TestSeeder::start_with(|config| {
        config.insecure_open = false;
        config.access_rules = true;
    })
    .await;
    let put = async |name: &str, pull: &[&str]| {
        let grants = serde_json::from_value(serde_json::json!({ "pull": pull })).unwrap();
        seeder.running.members.execute(Order::PutUser { name: name.into(), grants }).await.unwrap()
    };
    let ci = put("ci", &["team/**"]).await;
    if public {
        put("anonymous", &["public/**"]).await;
    }
    let password = ci["password"].as_str().unwrap().to_owned();
    (seeder, password)
}

impl TestSeeder {
    async fn as_whom(&self, path: &str, authorization: Option<&str>) -> Got {
        let ask = self.ask(Method::GET, path);
        match authorization {
            Some(value) => ask.header("authorization", value).send().await,
            None => ask.send().await,
        }
    }

    async fn token(&self, authorization: Option<&str>) -> Result<String, Got> {
        let got = self.as_whom("/v2/_shoal/token?service=shoal&scope=repository:team/app:pull", authorization).await;
        if got.status != StatusCode::OK {
            return Err(got);
        }
        assert_eq!((got.header("cache-control"), got.json()["expires_in"].as_u64()), ("no-store", Some(900)));
        Ok(format!("Bearer {}", got.json()["token"].as_str().unwrap()))
    }
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

#[tokio::test]
async fn a_client_that_is_turned_away_is_told_where_a_token_is_and_is_let_in_by_it() {
    let (seeder, password) = seeder(true).await;
    let turned_away = seeder.as_whom(PRIVATE, None).await;
    let realm = "Bearer realm=\"http://seeder/v2/_shoal/token\",service=\"shoal\"";
    assert_eq!(turned_away.status, StatusCode::UNAUTHORIZED);
    assert_eq!(turned_away.header("www-authenticate"), format!("{realm},scope=\"repository:team/app:pull\""));
    assert_eq!(seeder.as_whom("/v2/", None).await.header("www-authenticate"), realm);
    let (ci, nobody) = (seeder.token(Some(&basic("ci", &password))).await.unwrap(), seeder.token(None).await.unwrap());
    // No repository is there: whoever may see that is let in.
    for (who, path, status) in [
        (Some(&ci), PRIVATE, StatusCode::NOT_FOUND),
        (Some(&ci), PUBLIC, StatusCode::NOT_FOUND),
        (Some(&ci), "/v2/", StatusCode::OK),
        (Some(&ci), "/v2/other/tags/list", StatusCode::FORBIDDEN),
        (Some(&nobody), PUBLIC, StatusCode::NOT_FOUND),
        (Some(&nobody), PRIVATE, StatusCode::UNAUTHORIZED),
        (Some(&nobody), "/v2/", StatusCode::UNAUTHORIZED),
        (Some(&format!("{ci}x")), PRIVATE, StatusCode::UNAUTHORIZED),
        (Some(&"Bearer ".to_owned()), PUBLIC, StatusCode::UNAUTHORIZED),
    ] {
        let got = seeder.as_whom(path, who.map(String::as_str)).await;
        assert_eq!(got.status, status, "{path} as {who:?}");
    }
    let again = seeder.token(Some(&ci)).await.unwrap();
    assert_eq!(seeder.as_whom(PRIVATE, Some(&again)).await.status, StatusCode::NOT_FOUND);
    let wrong = seeder.token(Some(&basic("ci", "wrong"))).await.unwrap_err();
    assert_eq!((wrong.status, &wrong.header("www-authenticate")[..5]), (StatusCode::UNAUTHORIZED, "Basic"));
    let put = seeder.ask(Method::POST, "/v2/_shoal/token").body("grant_type=password").send().await;
    assert_eq!(put.status, StatusCode::METHOD_NOT_ALLOWED, "clients go on by GET");
}

#[tokio::test]
async fn where_nothing_is_public_who_shows_nothing_gets_no_token_and_a_made_up_name_of_the_registry_leads_nowhere() {
    let (seeder, password) = seeder(false).await;
    assert_eq!(seeder.token(None).await.unwrap_err().status, StatusCode::UNAUTHORIZED);
    assert!(seeder.token(Some(&basic("ci", &password))).await.is_ok());
    let mut socket = TcpStream::connect(seeder.running.registry_addr).await.unwrap();
    let request = "GET /v2/ HTTP/1.1\r\nHost: evil\",realm=\"http://evil\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 4") && !answer.contains("evil"), "{answer}");
}
