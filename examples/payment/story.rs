//! The story. Whatever it says, it has checked: `ensure!` ends it, and the program with an error, if it is not so.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgonce::{ErrorKind, Idempotency, InFlight, Outcome, State};
use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::bank::{self, Account, Books};
use crate::card::CardProcessor;
use crate::crash::DoomedService;
use crate::service::{Answer, ChargeRequest, Declined, PaymentService, Receipt, operation};
use crate::stage::Stage;
use crate::terminal::{self, CYAN, GREEN, RED, YELLOW, act, line, money, say, sends};

const TEAPOT: &str = "order-1001";
const CUPS: &str = "order-1002";
const STOLEN: &str = "order-1003";
const KETTLE: &str = "order-1004";

const SIGKILL: i32 = 9;

pub async fn tell(stage: &Stage, pool: &PgPool, processor: &CardProcessor) -> Result<()> {
    line(CYAN, "server", &stage.description());
    pgonce::migrate(pool).await?;
    pgonce::verify(pool).await?;
    line(CYAN, "migrations", "pgonce's tables are in the schema pgonce");
    bank::open(pool).await?;
    processor.open().await?;
    let books = Books::read(pool, processor).await?;
    line(CYAN, "bank", "two customers, a shop, and a ledger of who paid whom");
    terminal::books(&Books::default(), &books);
    say(
        "A shop charges cards through a payment service. Answers get lost and clients retry, so every request \
         carries an idempotency key. Every claim below is checked by the program that makes it.",
    );

    let service =
        PaymentService { idempotency: Idempotency::new(pool.clone()), processor: processor.clone() };
    let mut story = Story { stage, pool, service, books };
    let teapot = story.a_charge().await?;
    story.the_same_again(&teapot).await?;
    let cups = story.fifty_at_once().await?;
    story.another_amount().await?;
    story.a_declined_card().await?;
    let kettle = story.a_crash().await?;
    story.the_books(&[(TEAPOT, teapot), (CUPS, cups), (KETTLE, kettle)]).await
}

struct Story<'a> {
    stage: &'a Stage,
    pool: &'a PgPool,
    service: PaymentService,
    /// As they were shown last.
    books: Books,
}

impl Story<'_> {
    async fn a_charge(&mut self) -> Result<Receipt> {
        act(1, "A charge");
        say("Alice buys a teapot. The shop makes up a key for this payment, once, and sends it along.");
        let answer = self.send(TEAPOT, &alice_pays(4200)).await?;
        let Outcome::Executed(Ok(receipt)) = answer else { bail!("not charged: {answer:?}") };

        self.show_books(self.books.after_a_charge(4200)).await?;
        let changed = bank::changed_together(self.pool).await?;
        ensure!(changed == ["alice", "shop"], "one transaction changed only {changed:?}");
        say("One transaction committed all of it: the money, the ledger row, the key and the receipt.");
        Ok(receipt)
    }

    async fn the_same_again(&mut self, first: &Receipt) -> Result<()> {
        act(2, "The same request again");
        say("The answer is lost on its way. The shop cannot know what happened, so it asks again.");
        let answer = self.send(TEAPOT, &alice_pays(4200)).await?;
        let Outcome::Replayed(Ok(receipt)) = answer else { bail!("not replayed: {answer:?}") };
        ensure!(receipt == *first, "another receipt: {receipt:?}");

        self.show_books(self.books).await?;
        say("The same receipt. Alice has paid once, and her card was not asked again.");
        Ok(())
    }

    async fn fifty_at_once(&mut self) -> Result<Receipt> {
        act(3, "Fifty at once");
        say("Alice buys cups, and the shop's retry loop goes mad: fifty copies arrive together.");
        let request = alice_pays(1250);
        sends(CUPS, &format!("{}, 50 times", json(&request)?));
        let Fifty { executed, mut replayed, in_flight } = self.send_fifty(&request).await?;
        let [receipt] = executed.try_into().ok().context("not exactly one was executed")?;
        ensure!(1 + replayed.len() + in_flight == 50, "not 50 answers");
        line(GREEN, "Executed", &format!("1 of 50: {}", show(&receipt)));
        line(CYAN, "Replayed", &format!("{} of 50", replayed.len()));
        line(YELLOW, "In flight", &format!("{in_flight} of 50, told at once to ask again in a moment"));
        // They do.
        for _ in 0..in_flight {
            let answer = self.service.post_charge(CUPS, &request).await?;
            let Outcome::Replayed(Ok(receipt)) = answer else { bail!("not replayed: {answer:?}") };
            replayed.push(receipt);
        }
        ensure!(replayed.len() == 49 && replayed.iter().all(|one| *one == receipt), "another receipt");

        self.show_books(self.books.after_a_charge(1250)).await?;
        say("Those in flight have asked again. All fifty now hold the same receipt, for one charge.");
        Ok(receipt)
    }

    async fn another_amount(&mut self) -> Result<()> {
        act(4, "The same key with another amount");
        say("A bug in the shop: it sends the key of the teapot for something that costs 99.00.");
        let request = alice_pays(9900);
        sends(TEAPOT, &json(&request)?);
        let refused = self.service.post_charge(TEAPOT, &request).await;
        let error = refused.err().context("not refused")?;
        ensure!(is(&error, ErrorKind::FingerprintMismatch), "another error: {error:#}");
        line(RED, "Refused", &error.to_string());

        self.show_books(self.books).await?;
        say("Nothing ran. And the shop did not get the teapot's receipt for a payment it never made.");
        Ok(())
    }

    async fn a_declined_card(&mut self) -> Result<()> {
        act(5, "A declined card");
        say("Bob's card is reported stolen. The processor says no, and that no is final.");
        let request = ChargeRequest { payer: "bob".into(), ..alice_pays(3000) };
        let answer = self.send(STOLEN, &request).await?;
        let Outcome::Executed(Err(declined)) = answer else { bail!("not declined: {answer:?}") };

        let Books { keys, card_calls, .. } = self.books;
        self.show_books(Books { keys: keys + 1, card_calls: card_calls + 1, ..self.books }).await?;
        let number = bank::last_number(self.pool).await?;
        self.ensure_undone(number).await?;
        let operation = operation(STOLEN, &request)?;
        let record = self.service.idempotency.find(operation.scope(), operation.key()).await?;
        ensure!(record.is_some_and(|record| record.state() == State::Failed), "the failure is not recorded");
        say(&format!(
            "Bob's money had been moved and ledger row {number} written before the card was asked. That was undone, \
             and the refusal was committed with the key. So the retry need not ask the processor:"
        ));
        let answer = self.send(STOLEN, &request).await?;
        ensure!(answer == Outcome::Replayed(Err(declined)), "not replayed: {answer:?}");
        self.show_books(self.books).await
    }

    async fn a_crash(&mut self) -> Result<Receipt> {
        act(6, "A crash before the COMMIT");
        say("Alice buys a kettle. This time another process of the service answers, and it has no luck.");
        let request = alice_pays(2100);
        sends(KETTLE, &json(&request)?);
        let doomed = DoomedService::start(self.stage.url(), KETTLE, &request)?;
        let id = doomed.id();
        let lost = doomed.receipt.clone();
        line(CYAN, "Process", &format!("{id} has written {}. Only the COMMIT is missing.", show(&lost)));
        let duplicate = self.service.post_charge(KETTLE, &request).await;
        let error = duplicate.err().context("the key is not in flight")?;
        ensure!(is(&error, ErrorKind::InFlight), "another error: {error:#}");
        line(YELLOW, "In flight", "the same request, to this process: told to ask again in a moment");
        let status = doomed.kill()?;
        ensure!(status.signal() == Some(SIGKILL), "not killed: {status}");
        line(RED, "SIGKILL", &format!("process {id} is dead"));

        let card_calls = self.books.card_calls + 1;
        self.show_books(Books { card_calls, ..self.books }).await?;
        say(
            "No money has moved, and there is no ledger row and no key. Only the card processor was called, which \
             cannot be undone. The shop asks again:",
        );

        // A moment may pass until the server notices that its client is dead.
        let patient =
            self.service.idempotency.clone().with_in_flight(InFlight::Wait(Duration::from_secs(10)));
        self.service.idempotency = patient;
        let answer = self.send(KETTLE, &request).await?;
        let Outcome::Executed(Ok(receipt)) = answer else { bail!("not charged: {answer:?}") };
        self.show_books(self.books.after_a_charge(2100)).await?;
        self.ensure_undone(lost.number).await?;
        ensure!(receipt.authorisation == lost.authorisation, "the card was charged twice");
        say(&format!(
            "Charged once, and there was nothing to clean up first. The card was asked twice, but with the same derived \
             key: the processor recognised it and gave the same authorisation, {}.",
            receipt.authorisation
        ));
        Ok(receipt)
    }

    async fn the_books(&self, sold: &[(&str, Receipt)]) -> Result<()> {
        act(7, "The books");
        let accounts = bank::accounts(self.pool).await?;
        let together = Account::together(&accounts);
        ensure!(accounts.iter().all(Account::is_explained_by_the_ledger), "the ledger does not explain all");
        ensure!(together.balance == together.opening, "money was made or lost");
        terminal::accounts(&accounts, &together);

        let rows = bank::entries(self.pool).await?;
        let receipts =
            sold.iter().map(|(key, receipt)| (receipt.number, receipt.cents, Some(key.to_string())));
        ensure!(rows == receipts.collect::<Vec<_>>(), "ledger and receipts differ: {rows:?}");
        say(
            "Not a cent was made or lost, and the ledger explains every balance. Its rows are the receipts that the \
             shop holds, and each was committed by the same transaction as its key:",
        );
        for (key, receipt) in sold {
            line(CYAN, key, &show(receipt));
        }
        terminal::empty_line();

        ensure!(rows.iter().map(|row| row.0).eq([1, 2, 5]), "other numbers: {rows:?}");
        ensure!(bank::last_number(self.pool).await? == 5, "another row was written");
        say(
            "Numbers 3 and 4 were used by the declined card and by the crash. Those rows were written and undone.",
        );

        let card = self.service.processor.books().await?;
        ensure!((card.calls, card.authorisations) == (5, 3), "not 3 authorisations in 5 calls: {card:?}");
        ensure!(card.authorised_cents == together.paid, "the processor has authorised another sum: {card:?}");
        say(&format!(
            "The card processor holds 3 authorisations, for {} in all: what the ledger says.",
            money(together.paid)
        ));
        Ok(())
    }

    /// Sends a request to the service and shows both, the request and the answer.
    async fn send(&self, key: &str, request: &ChargeRequest) -> Result<Answer> {
        sends(key, &json(request)?);
        let answer = self.service.post_charge(key, request).await?;
        let text = match answer.as_ref().into_inner() {
            Ok(receipt) => show(receipt),
            Err(Declined { reason }) => format!("declined: {reason}"),
        };
        match answer {
            Outcome::Executed(_) => line(GREEN, "Executed", &text),
            Outcome::Replayed(_) => line(CYAN, "Replayed", &text),
        }
        Ok(answer)
    }

    /// Sends fifty copies at once, and sorts the answers.
    async fn send_fifty(&self, request: &ChargeRequest) -> Result<Fifty> {
        let mut copies = JoinSet::new();
        for _ in 0..50 {
            let (service, request) = (self.service.clone(), request.clone());
            copies.spawn(async move { service.post_charge(CUPS, &request).await });
        }
        let mut fifty = Fifty::default();
        for answer in copies.join_all().await {
            match answer {
                Ok(Outcome::Executed(Ok(receipt))) => fifty.executed.push(receipt),
                Ok(Outcome::Replayed(Ok(receipt))) => fifty.replayed.push(receipt),
                Err(error) if is(&error, ErrorKind::InFlight) => fifty.in_flight += 1,
                other => bail!("neither executed, nor replayed, nor in flight: {other:?}"),
            }
        }
        Ok(fifty)
    }

    /// Shows the books, if they are as expected.
    async fn show_books(&mut self, expected: Books) -> Result<()> {
        let books = Books::read(self.pool, &self.service.processor).await?;
        ensure!(books == expected, "the books should be {expected:?}, but are {books:?}");
        terminal::books(&self.books, &books);
        self.books = books;
        Ok(())
    }

    /// The ledger row was written, since its number is taken, and it is not there any more.
    async fn ensure_undone(&self, number: i64) -> Result<()> {
        ensure!(number <= bank::last_number(self.pool).await?, "ledger row {number} was never written");
        let entries = bank::entries(self.pool).await?;
        ensure!(entries.iter().all(|entry| entry.0 != number), "ledger row {number} was not undone");
        Ok(())
    }
}

/// What fifty copies of a request came to.
#[derive(Default)]
struct Fifty {
    executed: Vec<Receipt>,
    replayed: Vec<Receipt>,
    in_flight: usize,
}

fn alice_pays(cents: i64) -> ChargeRequest {
    ChargeRequest { payer: "alice".into(), payee: "shop".into(), cents }
}

fn is(error: &anyhow::Error, kind: ErrorKind) -> bool {
    error.downcast_ref::<pgonce::Error>().is_some_and(|error| error.kind() == kind)
}

fn json(request: &ChargeRequest) -> Result<String> {
    Ok(serde_json::to_string(request)?)
}

fn show(receipt: &Receipt) -> String {
    let Receipt { number, payer, payee, cents, authorisation } = receipt;
    format!("receipt {number}: {payer} paid {payee} {}, authorisation {authorisation}", money(*cents))
}
