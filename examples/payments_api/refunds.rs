//! Refunds: money of a charge back to where it came from, in one or several parts.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use pgonce::IdempotentTx;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use utoipa::ToSchema;

use crate::card_network::CardNetwork;
use crate::error::{ApiError, ProblemBody};
use crate::input::{Amount, Body, Id};
use crate::tenants::Tenant;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRefund {
    /// In cents; at most what is left of the charge.
    #[schema(value_type = i64, example = 1200, minimum = 1, maximum = 1_000_000)]
    amount: Amount,
}

#[derive(Serialize, ToSchema)]
pub struct Refund {
    #[schema(example = 1)]
    id: i64,
    #[schema(example = 1)]
    charge: i64,
    /// In cents.
    #[schema(example = 1200)]
    amount: i64,
}

impl FromRow<'_, PgRow> for Refund {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self { id: row.try_get("id")?, charge: row.try_get("charge")?, amount: row.try_get("amount")? })
    }
}

/// Refund a charge, or a part of it.
#[utoipa::path(
    post,
    path = "/charges/{id}/refunds",
    operation_id = "post_refund",
    description = "Gives money of the charge back to its account. A duplicate that comes while the first request is being \
        carried out waits for its response, for five seconds.",
    params(("id" = i64, Path, description = "The number of the charge")),
    request_body = NewRefund,
    responses(
        (status = 201, description = "Refunded", body = Refund),
        (status = 404, description = "No such charge. That is final for this key", body = ProblemBody,
            content_type = "application/problem+json"),
    )
)]
pub async fn post(
    Extension(tenant): Extension<Tenant>,
    State(card_network): State<CardNetwork>,
    Id(charge): Id<i64>,
    mut tx: IdempotentTx,
    Body(NewRefund { amount }): Body<NewRefund>,
) -> Result<impl IntoResponse, ApiError> {
    let charged: Option<(String, i64)> = sqlx::query_as(
        "SELECT account, amount - refunded FROM charges WHERE tenant = $1 AND id = $2 FOR UPDATE",
    )
    .bind(tenant.0)
    .bind(charge)
    .fetch_optional(&mut *tx)
    .await?;
    let (account, left) = charged.ok_or(ApiError::NotFound("charge"))?;
    if amount.cents() > left {
        return Err(ApiError::Invalid(format!("At most {left} cents of this charge can be refunded.")));
    }

    sqlx::query("UPDATE charges SET refunded = refunded + $2 WHERE id = $1")
        .bind(charge)
        .bind(amount.cents())
        .execute(&mut *tx)
        .await?;
    sqlx::query("UPDATE accounts SET balance = balance + $3 WHERE tenant = $1 AND id = $2")
        .bind(tenant.0)
        .bind(account)
        .bind(amount.cents())
        .execute(&mut *tx)
        .await?;
    let refund_key = tx.operation().derived_key("refund");
    let refund: Refund = sqlx::query_as(
        "INSERT INTO refunds (charge, amount, refund_key) VALUES ($1, $2, $3) RETURNING id, charge, amount",
    )
    .bind(charge)
    .bind(amount.cents())
    .bind(refund_key.as_str())
    .fetch_one(&mut *tx)
    .await?;

    card_network.transfer(&refund_key, "refund").await;
    Ok((StatusCode::CREATED, Json(refund)))
}
