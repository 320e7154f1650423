require "active_record"

port, _, adapter, sleep = ARGV
ActiveRecord::Base.establish_connection(
  adapter: adapter, host: "127.0.0.1", port: port.to_i, username: "kapok", password: "silk",
  database: adapter == "mysql2" ? "kapok" : "postgres", pool: 5
)
ActiveRecord::Schema.verbose = false
ActiveRecord::Schema.define do
  create_table(:ruby_authors, force: true) { |table| table.string :name }
  create_table(:ruby_books, force: true) do |table|
    table.string :title
    table.integer :copies, default: 0
    table.references :ruby_author
  end
end

class RubyAuthor < ActiveRecord::Base
  has_many :ruby_books
  validates :name, presence: true
end

class RubyBook < ActiveRecord::Base
  belongs_to :ruby_author
end

author = RubyAuthor.create!(name: "Ursula")
20.times { |number| author.ruby_books.create!(title: "Volume #{number}") }
p RubyBook.includes(:ruby_author).where("title like ?", "Volume 1%").order(:id).map(&:title)
begin
  RubyAuthor.create!(name: "")
rescue ActiveRecord::RecordInvalid => error
  puts error.message
end
ActiveRecord::Base.connection.execute("select #{sleep}(0.1)")

# Threads fight for a row, each with a connection of the pool.
book = RubyBook.first
4.times.map do
  Thread.new do
    ActiveRecord::Base.connection_pool.with_connection do
      10.times { RubyBook.find(book.id).with_lock { |*| RubyBook.where(id: book.id).update_all("copies = copies + 1") } }
    end
  end
end.each(&:join)
p book.reload.copies
begin
  ActiveRecord::Base.transaction do
    book.update!(title: "Lost")
    raise "rolled back"
  end
rescue RuntimeError => error
  puts error.message
end
p book.reload.title
exit 5
