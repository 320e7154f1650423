import sys, threading, pymysql

def connect(**more):
    return pymysql.connect(host="127.0.0.1", port=int(sys.argv[1]), user="kapok", password="silk",
                           database="kapok", **more)

one = connect()
cursor = one.cursor()
cursor.execute("select sleep(0.1), %s", ("a word",))
print(cursor.fetchall())
cursor.execute("select seq from seq_1_to_1000")
print(sum(row[0] for row in cursor))
try:
    cursor.execute("select nonsense")
except pymysql.Error as error:
    print(error)

# A thread is held up by the main one.
cursor.execute("select get_lock('python', 10)")
done = []
def wait():
    other = connect()
    other.cursor().execute("select get_lock('python', 10)")
    done.append("the lock was waited for")
thread = threading.Thread(target=wait)
thread.start()
cursor.execute("select sleep(0.1)")
print(done)
cursor.execute("select release_lock('python')")
thread.join()
print(done)

# The limit is not one on connecting, which takes what it takes.
two = connect()
two._read_timeout = 0.2
try:
    two.cursor().execute("select sleep(30)")
except pymysql.Error as error:
    print(error)
three = connect()
cursor.execute("kill %s", (three.thread_id(),))
try:
    three.cursor().execute("select 1")
except pymysql.Error as error:
    print(error.args[0])
sys.exit(5)
