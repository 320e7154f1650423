//! What is answered. The macro writes the one source twice: with calls that block, for threads and
//! fibers, and with `await`.

use serde::Serialize;

use crate::http::Reply;

/// What somebody asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    /// `/book/N`: a row.
    Book(i32),
    /// `/author/N`: twenty rows of a join.
    Author(i32),
    /// `/buy/N`: a row changed.
    Buy(i32),
    /// `/none/N`: no question to the database, and no connection to it.
    Nothing(i32),
    /// Anything else.
    Unknown,
}

macro_rules! handlers {
    ($name:ident, $connection:ty, $dsl:path, [$($asynchronous:tt)?], [$($wait:tt)*]) => {
        pub(crate) mod $name {
            use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, QueryResult};
            use $dsl as _;

            use super::{Request, json};
            use crate::http::Reply;
            use crate::schema::{self, Author, Book, books};

            /// Asks the database and makes a reply.
            pub(crate) $($asynchronous)? fn answer(
                request: Request,
                connection: &mut $connection,
            ) -> QueryResult<Reply> {
                Ok(match request {
                    Request::Book(id) => {
                        let book: Option<Book> =
                            schema::book(id).get_result(connection)$($wait)*.optional()?;
                        book.map_or_else(Reply::not_found, |book| json(&book))
                    }
                    Request::Author(id) => {
                        let books: Vec<(Author, Book)> =
                            schema::books_of(id).get_results(connection)$($wait)*?;
                        json(&books)
                    }
                    Request::Buy(id) => {
                        let bought = diesel::update(books::table.find(id))
                            .set(books::copies.eq(books::copies - 1))
                            .returning(books::copies);
                        let left: Option<i32> =
                            bought.get_result(connection)$($wait)*.optional()?;
                        left.map_or_else(Reply::not_found, |left| json(&left))
                    }
                    Request::Nothing(_) | Request::Unknown => Reply::not_found(),
                })
            }
        }
    };
}

handlers!(blocking, diesel::PgConnection, diesel::RunQueryDsl, [], []);
handlers!(
    asynchronous,
    diesel_async::AsyncPgConnection,
    diesel_async::RunQueryDsl,
    [async],
    [.await]
);

impl Request {
    /// The reply, if it takes no connection to the database.
    pub(crate) fn without_database(self) -> Option<Reply> {
        match self {
            Request::Nothing(id) => Some(json(&id)),
            Request::Unknown => Some(Reply::not_found()),
            Request::Book(_) | Request::Author(_) | Request::Buy(_) => None,
        }
    }
}

fn json(value: &impl Serialize) -> Reply {
    Reply::found(serde_json::to_vec(value).expect("plain data"))
}
