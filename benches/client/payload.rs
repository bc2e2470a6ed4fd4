//! What a client sends, and what it gets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Serialize)]
pub struct Charge {
    account: String,
    amount: u64,
    currency: &'static str,
    description: String,
}

/// About 100 bytes as JSON.
pub fn charge() -> Charge {
    Charge {
        account: "acct_8Qk2mZ".into(),
        amount: 4200,
        currency: "EUR",
        description: "Two tickets, 14 March, row 7".into(),
    }
}

/// A bank transfer: two or three dozen short texts.
#[derive(Serialize)]
pub struct Transfer {
    end_to_end_id: &'static str,
    debtor: Party,
    creditor: Party,
    ultimate_creditor: Option<Party>,
    amount: u64,
    currency: &'static str,
    requested_execution_date: &'static str,
    charge_bearer: &'static str,
    purpose: &'static str,
    remittance_information: &'static str,
    instruction_for_creditor_agent: &'static str,
}

#[derive(Serialize)]
struct Party {
    name: &'static str,
    iban: &'static str,
    bic: &'static str,
    address: [&'static str; 2],
}

/// About 1 KiB as JSON.
pub fn transfer() -> Transfer {
    Transfer {
        end_to_end_id: "0198f1c2-7a30-7d11-8f2e-5b9c41d0a6e3",
        debtor: Party {
            name: "Buchhandlung am Lichtensteg, Österreicher & Töchter OG",
            iban: "AT611904300234573201",
            bic: "BKAUATWWXXX",
            address: ["Lange Gasse 12, Stiege 2, Tür 14", "1080 Wien, Österreich"],
        },
        creditor: Party {
            name: "Papierfabrik Hallein Vertriebsgesellschaft m.b.H.",
            iban: "DE89370400440532013000",
            bic: "COBADEFFXXX",
            address: ["Industriestraße 48, Halle 3, Tor 7", "50667 Köln, Deutschland"],
        },
        ultimate_creditor: Some(Party {
            name: "Forstbetriebe Dachstein, Holzeinkauf",
            iban: "AT483200000012345864",
            bic: "RLNWATWWXXX",
            address: ["Salzburger Straße 9", "4820 Bad Ischl, Österreich"],
        }),
        amount: 1_284_350,
        currency: "EUR",
        requested_execution_date: "2026-03-14",
        charge_bearer: "SHAR",
        purpose: "SUPP",
        remittance_information: "Invoices 2026-00817, 2026-00818 and 2026-00841 of 27 February, less 2 % discount \
                                 for payment within 14 days, customer 40-118-2276",
        instruction_for_creditor_agent: "Please advise the beneficiary by telephone, +49 221 5550137, extension 12",
    }
}

/// A letter to a customer: one long text.
#[derive(Serialize)]
pub struct Letter {
    customer: &'static str,
    subject: &'static str,
    body: String,
}

/// About 1 KiB as JSON.
pub fn letter() -> Letter {
    Letter {
        customer: "cus_Nf3Wk81qLx",
        subject: "Your order of 14 March is on its way",
        body: "Your parcel was handed over to the carrier and will be with you in two working days. "
            .repeat(11),
    }
}

#[derive(Serialize)]
pub struct Order {
    customer: Customer,
    ship_to: Address,
    lines: Vec<Line>,
    currency: &'static str,
    total: u64,
    payment: Payment,
    express: bool,
    note: Option<String>,
    metadata: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Customer {
    id: String,
    name: String,
    email: String,
}

#[derive(Serialize)]
struct Address {
    street: String,
    city: String,
    postal_code: String,
    country: &'static str,
}

#[derive(Serialize)]
struct Line {
    sku: String,
    title: String,
    quantity: u32,
    unit_price: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Payment {
    Card { token: String, holder: String },
}

/// So many lines: with 6 about 1 KiB as JSON, with 187 about 16 KiB.
pub fn order(lines: u64) -> Order {
    let lines: Vec<_> = (0..lines)
        .map(|n| Line {
            sku: format!("BK-{:05}", 48_231 + 17 * n),
            title: format!("A history of bookkeeping, {}", n + 1),
            quantity: 1 + n as u32 % 3,
            unit_price: 1_250 + 95 * n,
        })
        .collect();
    let metadata = [
        ("session", "0198f1c2-7a30-7d11-8f2e-5b9c41d0a6e3"),
        ("campaign", "spring"),
        ("app_version", "5.14.2"),
        ("locale", "de-AT"),
    ];
    Order {
        customer: Customer {
            id: "cus_Nf3Wk81qLx".into(),
            name: "Renate Österreicher".into(),
            email: "renate.oesterreicher@example.org".into(),
        },
        ship_to: Address {
            street: "Lange Gasse 12, Stiege 2".into(),
            city: "Wien".into(),
            postal_code: "1080".into(),
            country: "AT",
        },
        currency: "EUR",
        total: lines.iter().map(|line| u64::from(line.quantity) * line.unit_price).sum(),
        lines,
        payment: Payment::Card { token: "tok_1PqZb2Lk".into(), holder: "R OESTERREICHER".into() },
        express: false,
        note: None,
        metadata: metadata.map(|(key, value)| (key.into(), value.into())).into(),
    }
}

/// A closure's result, of about 300 bytes as JSON.
#[derive(Serialize, Deserialize)]
pub struct Receipt {
    id: u64,
    account: String,
    amount: u64,
    currency: String,
    status: String,
    created_at: String,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    ledger: String,
    amount: i64,
}

pub fn receipt() -> Receipt {
    let entry = |ledger: &str, amount| Entry { ledger: ledger.into(), amount };
    Receipt {
        id: 918_273,
        account: "acct_8Qk2mZ".into(),
        amount: 4200,
        currency: "EUR".into(),
        status: "captured".into(),
        created_at: "2026-03-14T09:26:53.589Z".into(),
        entries: vec![
            entry("acct_8Qk2mZ/available", -4200),
            entry("merchant_77/pending", 4074),
            entry("fees/card", 126),
        ],
    }
}
