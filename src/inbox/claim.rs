//! The claim of a batch: which of its messages are fresh. Private.

use std::collections::HashMap;

use tracing::Instrument;
use uuid::Uuid;

use super::{Inbox, Message};
use crate::call::Call;
use crate::claim::Claimed;
use crate::sql::{Batch, Owner};
use crate::step::Step;
use crate::transaction::Transaction;
use crate::{Error, Fingerprint, protocol};

/// What the messages of a part are, by their places in the batch.
#[derive(Default)]
pub(super) struct Sorted {
    pub(super) fresh: Vec<usize>,
    /// Those whose ids are committed, and with which content.
    pub(super) known: Vec<(usize, Fingerprint)>,
}

impl Inbox {
    /// Claims what is fresh in this part, whose ids are all different. Without anything fresh there is no claim.
    pub(super) async fn claim_part<B>(
        &self,
        messages: &[Message<B>],
        part: &[usize],
        call: &Call,
    ) -> Result<(Sorted, Option<Claimed>), Error> {
        let step = Step::claim(call, &self.idempotency);
        let claimed = self.claim_part_on(messages, part, call).instrument(step.span()).await;
        claimed.inspect_err(|error| {
            call.fails_with(error);
            step.failed(error);
        })
    }

    async fn claim_part_on<B>(
        &self,
        messages: &[Message<B>],
        part: &[usize],
        call: &Call,
    ) -> Result<(Sorted, Option<Claimed>), Error> {
        let mut transaction =
            self.idempotency.begin_guarded(self.idempotency.pool().acquire().await?).await?;
        match self.sort(&mut transaction, messages, part).await {
            Ok((sorted, Some(owner))) => Ok((
                sorted,
                Some(Claimed::new(transaction, owner, self.idempotency.clone(), call.clone(), None)),
            )),
            Ok((sorted, None)) => {
                transaction.leave();
                Ok((sorted, None))
            }
            Err(error) => {
                transaction.rollback().await;
                Err(error)
            }
        }
    }

    async fn sort<B>(
        &self,
        transaction: &mut Transaction,
        messages: &[Message<B>],
        part: &[usize],
    ) -> Result<(Sorted, Option<Owner>), Error> {
        let conn = transaction.connection();
        let batch = Batch { scope: &self.consumer, attempt: Uuid::new_v4(), retention: self.retention };
        let contents: HashMap<usize, Fingerprint> =
            part.iter().map(|&at| (at, messages[at].content())).collect();
        let mut open: HashMap<&str, usize> =
            part.iter().map(|&at| (messages[at].id().as_str(), at)).collect();
        let mut sorted = Sorted::default();
        let mut owner = None;
        // A second round needs another transaction to have finished or removed a row in between.
        for _ in 0..protocol::MAX_ROUNDS {
            let (keys, fingerprints) = columns(&open, &contents);
            let (claimed, owner_of_these) = batch.claim(conn, &keys, &fingerprints).await?;
            owner = owner.or(owner_of_these);
            sorted.fresh.extend(claimed.iter().filter_map(|key| open.remove(key.as_str())));
            if open.is_empty() {
                break;
            }
            let mut expired = false;
            for row in batch.look(conn, &columns(&open, &contents).0).await? {
                if row.pending {
                    return Err(protocol::visible_pending(&self.consumer));
                }
                if row.expired {
                    expired = true;
                } else if let Some(at) = open.remove(row.key.as_str()) {
                    sorted.known.push((at, row.fingerprint));
                }
            }
            if expired {
                let (keys, fingerprints) = columns(&open, &contents);
                let (taken, owner_of_these) = batch.take_over(conn, &keys, &fingerprints).await?;
                owner = owner.or(owner_of_these);
                sorted.fresh.extend(taken.iter().filter_map(|key| open.remove(key.as_str())));
            }
            if open.is_empty() {
                break;
            }
        }
        if !open.is_empty() {
            return Err(protocol::neither_inserted_nor_seen());
        }
        sorted.fresh.sort_unstable();
        Ok((sorted, owner))
    }
}

fn columns<'m>(
    open: &HashMap<&'m str, usize>,
    contents: &'m HashMap<usize, Fingerprint>,
) -> (Vec<&'m str>, Vec<&'m [u8]>) {
    open.iter().map(|(&key, at)| (key, contents[at].as_bytes().as_slice())).unzip()
}
