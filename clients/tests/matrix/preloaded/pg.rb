require "pg"

def connect
  PG.connect(host: "127.0.0.1", port: ARGV[0], user: "kapok", dbname: "postgres")
end

one = connect
p one.exec_params("select pg_sleep(0.1), $1::text", ["a word"]).values
p one.exec("select * from generate_series(1, 1000) n").sum { |row| row["n"].to_i }
begin
  one.exec("select nonsense")
rescue PG::Error => error
  puts error.message
end

# A thread is held up by the main one.
one.exec("select pg_advisory_lock(78)")
done = []
thread = Thread.new do
  connect.exec("select pg_advisory_lock(78)")
  done << "the lock was waited for"
end
one.exec("select pg_sleep(0.1)")
p done
one.exec("select pg_advisory_unlock(78)")
thread.join
p done

# What one would not run on a stack that the collector does not know.
GC.stress = false
200.times { Array.new(1000) { |number| "word #{number}" } }
GC.start

two = connect
one.exec_params("select pg_terminate_backend($1)", [two.backend_pid])
begin
  two.exec("select 1")
rescue PG::Error => error
  puts error.class
end
exit 5
