require "mysql2"

def connect(**more)
  Mysql2::Client.new(host: "127.0.0.1", port: ARGV[0].to_i, username: "kapok", password: "silk",
                     database: "kapok", **more)
end

one = connect
p one.query("select sleep(0.1) as slept, 'a word' as word").to_a
p one.query("select seq from seq_1_to_1000").sum { |row| row["seq"] }
begin
  one.query("select nonsense")
rescue Mysql2::Error => error
  puts error.message
end

# A thread is held up by the main one.
one.query("select get_lock('ruby', 10)")
done = []
thread = Thread.new do
  connect.query("select get_lock('ruby', 10)")
  done << "the lock was waited for"
end
one.query("select sleep(0.1)")
p done
one.query("select release_lock('ruby')")
thread.join
p done
GC.start

begin
  connect(read_timeout: 1).query("select sleep(30)")
rescue Mysql2::Error => error
  puts error.message
end
two = connect
one.query("kill #{two.thread_id}")
begin
  two.query("select 1")
rescue Mysql2::Error => error
  puts error.class
end
exit 5
