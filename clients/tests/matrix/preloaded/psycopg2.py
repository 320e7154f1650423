import sys, threading, psycopg2

def connect():
    return psycopg2.connect(host="127.0.0.1", port=sys.argv[1], user="kapok", dbname="postgres")

one = connect()
cursor = one.cursor()
cursor.execute("select pg_sleep(0.1), %s", ("a word",))
print(cursor.fetchall())
cursor.execute("select * from generate_series(1, 1000)")
print(sum(row[0] for row in cursor))
try:
    cursor.execute("select nonsense")
except psycopg2.Error as error:
    print(error.pgcode, error)
one.rollback()

# A thread is held up by the main one.
cursor.execute("create temporary table locked (n integer)")
cursor.execute("select pg_advisory_xact_lock(77)")
done = []
def wait():
    other = connect()
    other.cursor().execute("select pg_advisory_xact_lock(77)")
    done.append("the lock was waited for")
thread = threading.Thread(target=wait)
thread.start()
cursor.execute("select pg_sleep(0.1)")
print(done)
one.commit()
thread.join()
print(done)

two = connect()
two.cursor().execute("set statement_timeout = 100")
try:
    two.cursor().execute("select pg_sleep(30)")
except psycopg2.Error as error:
    print(error.pgcode)
two.rollback()
number = two.get_backend_pid()
cursor.execute("select pg_terminate_backend(%s)", (number,))
try:
    two.cursor().execute("select 1")
except psycopg2.OperationalError as error:
    print(error)
sys.exit(5)
