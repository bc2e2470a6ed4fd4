# A server from installed programs. After the keeper's three arguments: the folder of the
# programs, the folder of the server that this one is to be a standby of (or nothing), then the
# server's options.

make_server() {
    if [ "$2" ]; then
        make_standby "$2"
    else
        "$1/initdb" -D "$PWD/data" --username=postgres --pwfile=password \
            --auth-host=password --auth-local=reject --encoding=UTF8 --locale=C --no-sync
    fi
}

# From what copy_server left in the primary's folder. The password is part of the data.
make_standby() {
    mv "$1/copy" data && cp "$1/password" password && : >data/standby.signal || return
    read -r primary <"$1/port" && read -r password <password || return
    echo "primary_conninfo = 'host=127.0.0.1 port=$primary user=postgres password=$password'" \
        >>data/postgresql.conf
}

# For a standby. The server is down, so that the copy is consistent; a standby that starts with
# it recovers as the server itself does.
copy_server() {
    rm -rf copy copy.new
    cp -R data copy.new && mv copy.new copy
}

run_server() {
    bin=$1
    shift 2
    # `mmap` keeps dynamic shared memory in the folder, and not in /dev/shm.
    "$bin/postgres" -D "$PWD/data" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c dynamic_shared_memory_type=mmap "$@"
}

# With SIGQUIT it ends at once, as in a crash; with SIGINT it puts its affairs in order first. The
# first line of the file is the server's process id; it is negative while it belongs to initdb.
stop_server() {
    pid=
    [ -e data/postmaster.pid ] && read -r pid <data/postmaster.pid
    case $pid in
        [1-9]*) kill "-$1" "$pid" ;;
    esac
}

remove_server() { stop_server QUIT; }

clean_up() { :; }
