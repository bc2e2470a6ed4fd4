use super::*;

#[test]
fn an_object_is_in_the_order_of_its_encoding_so_that_it_need_not_be_copied_into_it() {
    let long = "a".repeat(300);
    let text = format!(r#"{{"b":0,"{long}":0,"é":0,"a":1,"":0,"aa":0,"a":0,"\u0061":2}}"#);
    let Ok(Json::Object(entries)) = Json::parse(text.as_bytes()) else { panic!("an object") };
    let encoded = entries.iter().map(|(key, _)| {
        let mut encoder = Encoder::default();
        encoder.string(key);
        encoder.as_bytes().to_owned()
    });
    assert!(encoded.is_sorted());

    let same_key = entries.iter().filter(|(key, _)| key == "a");
    let numbers: Vec<_> =
        same_key.map(|(_, value)| matches!(value, Json::Number(text) if *text == "1")).collect();
    assert_eq!(numbers, [true, false, false], "equal keys stay in their order");
}
