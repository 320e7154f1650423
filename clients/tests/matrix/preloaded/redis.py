import sys, threading, time, redis

one = redis.Redis(port=int(sys.argv[1]))
print(one.blpop("nothing", 1))
one.set("python", "a word")
print(one.get("python"))
with one.pipeline() as pipeline:
    for number in range(1000):
        pipeline.incrby("python sum", number)
    print(pipeline.execute()[-1])
one.delete("python sum")

timer = threading.Timer(0.1, lambda: one.rpush("python list", "late"))
timer.start()
print(one.blpop("python list", 10))

# What is published comes to who listens.
subscription = one.pubsub()
subscription.subscribe("python channel")
print(subscription.get_message(timeout=1)["type"])
one.publish("python channel", "news")
print(subscription.get_message(timeout=1))
print(subscription.get_message(timeout=0.1))

impatient = redis.Redis(port=int(sys.argv[1]), socket_timeout=0.1)
try:
    impatient.blpop("nothing", 30)
except redis.TimeoutError as error:
    print(error)
two = redis.Redis(port=int(sys.argv[1]), single_connection_client=True, retry_on_error=[])
number = two.client_id()
print(one.client_kill_filter(_id=number))
try:
    two.execute_command("BLPOP", "nothing", 1)
except redis.ConnectionError as error:
    print("the connection is gone")
sys.exit(5)
