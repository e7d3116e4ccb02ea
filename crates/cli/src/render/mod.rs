//! What is shown: tables, sentences, colours. Pure, but for [`live`], which prints as things happen.

pub(crate) mod job;
pub(crate) mod live;
pub(crate) mod node;
pub(crate) mod paint;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod top;
