//! The fingerprint of a request, tried with arbitrary ones: no two parts of it can be taken for each other.

use axum::body::Body;
use axum::http::{Method, Request};
use pgonce::Fingerprint;
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Clone, Debug, PartialEq)]
struct Sent {
    method: Method,
    path: String,
    query: Option<String>,
    content_type: Option<String>,
    body: String,
}

impl Sent {
    fn fingerprint(&self) -> Fingerprint {
        let query = self.query.iter().map(|query| format!("?{query}")).collect::<String>();
        let mut request = Request::builder().method(&self.method).uri(format!("/{}{query}", self.path));
        if let Some(content_type) = &self.content_type {
            request = request.header("content-type", content_type);
        }
        let (head, _) = request.body(Body::empty()).unwrap().into_parts();
        pgonce::http::fingerprint(&head, self.body.as_bytes()).unwrap()
    }
}

/// From so few characters that the same text often stands in another part.
fn similar() -> impl Strategy<Value = Sent> {
    let text = "[ab/]{0,2}";
    (
        select(vec![Method::POST, Method::PATCH]),
        text,
        proptest::option::of(text),
        proptest::option::of(prop_oneof![2 => text.boxed(), 1 => json_type().boxed()]),
        prop_oneof![2 => text, 1 => "\"[ab/]{0,2}\""],
    )
        .prop_map(|(method, path, query, content_type, body)| Sent {
            method,
            path,
            query,
            content_type,
            body,
        })
}

fn json_type() -> impl Strategy<Value = String> {
    select(vec!["application/json", "application/a+json", "text/json", "application/jsonb"])
        .prop_map(String::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn two_requests_have_one_fingerprint_only_when_they_are_the_same(one in similar(), other in similar()) {
        prop_assert_eq!(one.fingerprint() == other.fingerprint(), one == other);
    }

    #[test]
    fn text_that_moves_from_one_part_to_the_next_makes_it_another_request(
        text in "[a-z]{3,12}", from in any::<[proptest::sample::Index; 3]>(), to in any::<[proptest::sample::Index; 3]>(),
    ) {
        let cut = |at: [proptest::sample::Index; 3]| {
            let mut at = at.map(|index| index.index(text.len() + 1));
            at.sort_unstable();
            let part = |from, to| text[from..to].to_owned();
            Sent {
                method: Method::POST,
                path: part(0, at[0]),
                query: Some(part(at[0], at[1])),
                content_type: Some(part(at[1], at[2])),
                body: part(at[2], text.len()),
            }
        };
        let (one, other) = (cut(from), cut(to));
        prop_assert_eq!(one.fingerprint() == other.fingerprint(), one == other);
    }

    #[test]
    fn json_is_compared_by_value_and_the_parameters_of_its_type_do_not_matter(
        numbers in proptest::collection::vec(any::<i64>(), 0..4), upper: bool, parameter in "(; ?charset=[a-z0-9-]{1,5})?",
    ) {
        let sent = |content_type: String, body: String| Sent {
            method: Method::POST, path: "charges".into(), query: None, content_type: Some(content_type), body,
        };
        let json_type = if upper { "Application/JSON" } else { "application/json" };
        let plain = sent("application/json".into(), serde_json::to_string(&numbers).unwrap());
        let pretty = sent(format!("{json_type}{parameter}"), serde_json::to_string_pretty(&numbers).unwrap());
        prop_assert_eq!(plain.fingerprint(), pretty.fingerprint());
        let text = sent("text/plain".into(), plain.body.clone());
        prop_assert_ne!(plain.fingerprint(), text.fingerprint());
        let spaced = sent("text/plain".into(), format!("{} ", plain.body));
        prop_assert_ne!(text.fingerprint(), spaced.fingerprint(), "other bodies are compared byte by byte");
    }

    #[test]
    fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..48), json: bool) {
        let content_type = if json { "application/json" } else { "text/plain" };
        let (head, _) = Request::post("/charges").header("content-type", content_type).body(()).unwrap().into_parts();
        let fingerprint = pgonce::http::fingerprint(&head, &body).unwrap();
        let mut longer = body;
        longer.push(b'x');
        prop_assert_ne!(pgonce::http::fingerprint(&head, &longer).unwrap(), fingerprint);
    }
}
