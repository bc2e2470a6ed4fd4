//! The remains of deleted keys, while another transaction keeps vacuum from removing them.

use std::time::Instant;

use anyhow::ensure;
use pgonce::{Idempotency, Reaper};
use throwaway_postgres::Settings;

use crate::{database, keys, server};

const BATCH: u32 = 1000;

pub async fn measure(quick: bool) -> anyhow::Result<String> {
    let counts: &[i64] = if quick { &[20_000, 40_000] } else { &[50_000, 100_000, 200_000] };
    let server = server(Settings::fast()).await?;
    let mut table =
        "| keys | with the bound (the reaper) | each batch from the beginning (`purge_expired`) |\n\
                     | --- | --- | --- |\n"
            .to_owned();
    for count in counts {
        let mut seconds = [0.0, 0.0];
        for bound in [true, false] {
            let pool = database(&server, &format!("held_{count}_{bound}")).await?;
            keys::add_expired(&pool, *count).await?;
            let mut holder = pool.begin().await?;
            sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM pgonce.keys LIMIT 1")
                .execute(&mut *holder)
                .await?;
            let idempotency = Idempotency::new(pool.clone());
            let began = Instant::now();
            let mut deleted = 0;
            if bound {
                deleted =
                    Reaper::new(idempotency).with_batch_size(BATCH).with_rest(0).run_once().await?.deleted;
            } else {
                while let purged @ 1.. = idempotency.purge_expired(BATCH).await? {
                    deleted += purged;
                }
            }
            seconds[usize::from(bound)] = began.elapsed().as_secs_f64();
            ensure!(deleted as i64 == *count, "{deleted} of {count}");
            holder.rollback().await?;
            pool.close().await;
        }
        table += &format!("| {count} | {:.1} s | {:.1} s |\n", seconds[1], seconds[0]);
    }
    Ok(format!("Batches of {BATCH}, no rests, while another transaction has a snapshot.\n\n{table}"))
}
