# A server in a container. After the keeper's three arguments: the image, the container's name,
# an option for the data's storage (or nothing), then the server's options.

make_server() { echo "$2" >container; }

# In the foreground for as long as the container runs. The password goes through the
# environment: arguments are visible to everybody.
run_server() {
    image=$1 name=$2 storage=$3
    shift 3
    if ! [ -e stopped ]; then
        docker rm -f -v "$name" >/dev/null 2>&1
        POSTGRES_PASSWORD=$(cat password) client create --name "$name" --shm-size 256m \
            -e POSTGRES_PASSWORD -e POSTGRES_HOST_AUTH_METHOD=password \
            -e POSTGRES_INITDB_ARGS='--auth-host=password --encoding=UTF8 --locale=C --no-sync' \
            -e PGDATA=/var/lib/throwaway/data ${storage:+"$storage"} \
            -p "127.0.0.1:$port:5432" "$image" postgres "$@" || return
    fi
    client start --attach "$name"
}

# A client whose process id is known, since it may have to be killed: pulling an image is slow.
client() {
    docker "$@" &
    echo $! >client
    wait $!
}

stop_server() {
    : >stopped
    docker kill --signal "$1" "$3"
}

remove_server() {
    read -r pid <client && kill -KILL "$pid"
    [ "$(docker rm -f -v "$2")" ] && removed=yes
}

# The engine may still be working for a client that was killed.
clean_up() {
    for _ in 1 2 3 4 5 6 7 8; do
        [ "$removed" ] || [ "$(docker rm -f -v "$2")" ] && break
        sleep 0.25
    done
}
