# The keeper: one `sh` for one nats-server. It outlives the example, however that ends, and then
# removes the server and its folder.
#
# $1 the folder, $2 the container's name (or nothing), then the server's command.
folder=$1 container=$2
shift 2

# A Ctrl-C at the user's terminal must not stop who cleans up after it.
trap '' HUP INT QUIT TERM
umask 077
exec 2>&1
mkdir "$folder" || exit

"$@" </dev/null &
# The server's log goes to the example. It ends when the server does.
exec >/dev/null 2>&1
# Until the example's end of our stdin is closed: by itself, or by the kernel.
cat

kill -KILL $!
[ -z "$container" ] || docker rm -f -v "$container"
wait
rm -rf "$folder"
