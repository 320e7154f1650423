//! The tables, their rows as Rust has them, and the queries, which Diesel and diesel-async share.

use diesel::connection::SimpleConnection;
use diesel::dsl::{AsSelect, auto_type};
use diesel::pg::Pg;
use diesel::prelude::*;
use serde::Serialize;

pub(crate) const AUTHORS: i32 = 1_000;
const BOOKS_OF_EACH: i32 = 20;
pub(crate) const BOOKS: i32 = AUTHORS * BOOKS_OF_EACH;

diesel::table! {
    authors (id) {
        id -> Integer,
        name -> Text,
        born -> Integer,
    }
}

diesel::table! {
    books (id) {
        id -> Integer,
        author_id -> Integer,
        title -> Text,
        summary -> Nullable<Text>,
        price -> Double,
        copies -> Integer,
    }
}

diesel::joinable!(books -> authors (author_id));
diesel::allow_tables_to_appear_in_same_query!(authors, books);

#[derive(Queryable, Selectable, Serialize)]
#[diesel(table_name = authors, check_for_backend(Pg))]
pub(crate) struct Author {
    id: i32,
    name: String,
    born: i32,
}

#[derive(Queryable, Selectable, Serialize)]
#[diesel(table_name = books, check_for_backend(Pg))]
pub(crate) struct Book {
    id: i32,
    author_id: i32,
    title: String,
    summary: Option<String>,
    price: f64,
    copies: i32,
}

/// A book by its number.
#[auto_type(no_type_alias)]
pub(crate) fn book(id: i32) -> _ {
    let columns: AsSelect<Book, Pg> = Book::as_select();
    books::table.find(id).select(columns)
}

/// The books of an author, each with the author.
#[auto_type(no_type_alias)]
pub(crate) fn books_of(author: i32) -> _ {
    let of_author: AsSelect<Author, Pg> = Author::as_select();
    let of_book: AsSelect<Book, Pg> = Book::as_select();
    books::table
        .inner_join(authors::table)
        .filter(authors::id.eq(author))
        .order(books::title)
        .select((of_author, of_book))
}

/// Makes the tables and fills them.
pub(crate) fn fill(database: &str) -> Result<(), crate::Error> {
    let mut connection = PgConnection::establish(database)?;
    connection.batch_execute(&format!(
        "drop table if exists books, authors;
         create table authors (id integer primary key, name text not null, born integer not null);
         create table books (id integer primary key, author_id integer not null references authors,
             title text not null, summary text, price double precision not null,
             copies integer not null) with (fillfactor = 50);
         insert into authors select n, 'Author ' || n, 1900 + n % 100
             from generate_series(1, {AUTHORS}) n;
         insert into books select n, 1 + n % {AUTHORS}, 'Title ' || md5(n::text),
             case when n % 3 > 0 then repeat('word ', 12) end, n % 90 + 0.99, 1000000
             from generate_series(1, {BOOKS}) n;
         create index on books (author_id);
         analyze authors, books"
    ))?;
    Ok(())
}
