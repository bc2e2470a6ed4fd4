//! pgonce
