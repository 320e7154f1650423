import concurrent.futures, socket, ssl, subprocess, sys, time, urllib.error, urllib.request

page = "https://localhost:" + sys.argv[1]
trusting = ssl.create_default_context(cafile=sys.argv[2])

def get(path, **more):
    with urllib.request.urlopen(page + path, context=trusting, **more) as reply:
        return reply.status, reply.read()

print(get("/"), get("/slow"))
try:
    get("/never", timeout=0.3)
except TimeoutError as error:
    print(error)
try:
    urllib.request.urlopen(page)
except urllib.error.URLError as error:
    print(error)
try:
    urllib.request.urlopen("http://127.0.0.1:1/")
except urllib.error.URLError as error:
    print(error)
with concurrent.futures.ThreadPoolExecutor(4) as threads:
    print(list(threads.map(get, ["/slow"] * 4)))
time.sleep(0.05)
print(subprocess.run(["sh", "-c", "sleep 0.05; echo a child; exit 4"], stdout=subprocess.PIPE))
print(socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM))
sys.exit(5)
