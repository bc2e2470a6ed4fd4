# A server from installed programs. After the keeper's three arguments: the folder of the
# programs, then the server's options.

make_server() {
    "$1/initdb" -D "$PWD/data" --username=postgres --pwfile=password \
        --auth-host=password --auth-local=reject --encoding=UTF8 --locale=C --no-sync
}

run_server() {
    bin=$1
    shift
    # `mmap` keeps dynamic shared memory in the folder, and not in /dev/shm.
    "$bin/postgres" -D "$PWD/data" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c dynamic_shared_memory_type=mmap "$@"
}

# SIGQUIT: ends at once, as in a crash. The first line of the file is the server's process id;
# it is negative while it belongs to initdb.
stop_server() {
    pid=
    [ -e data/postmaster.pid ] && read -r pid <data/postmaster.pid
    case $pid in
        [1-9]*) kill -QUIT "$pid" ;;
    esac
}

remove_server() { stop_server; }

clean_up() { :; }
