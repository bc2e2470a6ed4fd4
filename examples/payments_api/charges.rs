//! Charges: money from a tenant's customer to the tenant.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use pgonce::IdempotentTx;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgPool, Row};
use utoipa::ToSchema;

use crate::accounts::AccountId;
use crate::card_network::CardNetwork;
use crate::error::{ApiError, ProblemBody};
use crate::input::{Amount, Body, Id};
use crate::tenants::Tenant;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCharge {
    /// Who pays.
    #[schema(value_type = String, example = "alice", pattern = "^[A-Za-z0-9]{1,40}$")]
    account: AccountId,
    /// In cents.
    #[schema(value_type = i64, example = 4200, minimum = 1, maximum = 1_000_000)]
    amount: Amount,
}

#[derive(Serialize, ToSchema)]
pub struct Charge {
    #[schema(example = 1)]
    id: i64,
    #[schema(example = "alice")]
    account: String,
    /// In cents.
    #[schema(example = 4200)]
    amount: i64,
    /// How much of it has been given back, in cents.
    #[schema(example = 0)]
    refunded: i64,
}

impl FromRow<'_, PgRow> for Charge {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            account: row.try_get("account")?,
            amount: row.try_get("amount")?,
            refunded: row.try_get("refunded")?,
        })
    }
}

/// Charge an account.
///
/// An ordinary handler: it writes through `tx`, and knows of idempotency only to give the card network a key, too. Its
/// writes, the key and the response are committed together when it has returned.
#[utoipa::path(
    post,
    path = "/charges",
    operation_id = "post_charge",
    description = "Takes the amount from the account. It may take a second.",
    request_body = NewCharge,
    responses(
        (status = 201, description = "Charged", body = Charge,
            headers(("Location" = String, description = "The path of the charge"))),
        (status = 402, description = "The account has not enough money. That is final for this key",
            body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn post(
    Extension(tenant): Extension<Tenant>,
    State(card_network): State<CardNetwork>,
    mut tx: IdempotentTx,
    Body(NewCharge { account, amount }): Body<NewCharge>,
) -> Result<impl IntoResponse, ApiError> {
    let capture_key = tx.operation().derived_key("capture");
    let charge: Charge = sqlx::query_as(
        "INSERT INTO charges (tenant, account, amount, capture_key) VALUES ($1, $2, $3, $4)
         RETURNING id, account, amount, refunded",
    )
    .bind(tenant.0)
    .bind(account.as_str())
    .bind(amount.cents())
    .bind(capture_key.as_str())
    .fetch_one(&mut *tx)
    .await
    .map_err(unknown_account)?;

    let paid = sqlx::query(
        "UPDATE accounts SET balance = balance - $3 WHERE tenant = $1 AND id = $2 AND balance >= $3",
    )
    .bind(tenant.0)
    .bind(account.as_str())
    .bind(amount.cents())
    .execute(&mut *tx)
    .await?;
    if paid.rows_affected() == 0 {
        // A 4xx is recorded, and what was written is undone: no charge remains.
        return Err(ApiError::InsufficientFunds);
    }

    // Last, when nothing on our side can go wrong any more except the COMMIT. The network cannot be rolled back; under a
    // key that is the same whenever this request is tried again, it need not be.
    card_network.transfer(&capture_key, "capture").await;
    Ok((StatusCode::CREATED, [(LOCATION, format!("/charges/{}", charge.id))], Json(charge)))
}

/// The tenant has no such account: a foreign key says so.
fn unknown_account(error: sqlx::Error) -> ApiError {
    match error.as_database_error() {
        Some(refused) if refused.is_foreign_key_violation() => {
            ApiError::Invalid("There is no such account.".into())
        }
        _ => error.into(),
    }
}

/// A charge.
#[utoipa::path(
    get,
    path = "/charges/{id}",
    operation_id = "get_charge",
    params(("id" = i64, Path, description = "The number of the charge")),
    responses(
        (status = 200, description = "The charge", body = Charge),
        (status = 404, description = "No such charge", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    Extension(tenant): Extension<Tenant>,
    State(pool): State<PgPool>,
    Id(id): Id<i64>,
) -> Result<Json<Charge>, ApiError> {
    let charge =
        sqlx::query_as("SELECT id, account, amount, refunded FROM charges WHERE tenant = $1 AND id = $2")
            .bind(tenant.0)
            .bind(id)
            .fetch_optional(&pool)
            .await?;
    charge.map(Json).ok_or(ApiError::NotFound("charge"))
}

/// The latest 100 charges, the newest first.
#[utoipa::path(
    get,
    path = "/charges",
    operation_id = "list_charges",
    responses((status = 200, description = "The charges", body = [Charge]))
)]
pub async fn list(
    Extension(tenant): Extension<Tenant>,
    State(pool): State<PgPool>,
) -> Result<Json<Vec<Charge>>, ApiError> {
    let charges = sqlx::query_as(
        "SELECT id, account, amount, refunded FROM charges WHERE tenant = $1 ORDER BY id DESC LIMIT 100",
    )
    .bind(tenant.0)
    .fetch_all(&pool)
    .await?;
    Ok(Json(charges))
}
