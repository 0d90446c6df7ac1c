/* Reads XREADGROUP's replies and keeps messages without an object for each field.
 *
 * 1. `Reader` stands before a hiredis.Reader, with the same `feed`, `gets` and `has_data`. It knows one reply: that of
 *    XREADGROUP with entries. Anything else is handed to hiredis byte for byte, from the beginning of that reply on.
 * 2. `Entries` are one stream's entries in such a reply. Indexed or iterated they are what hiredis returns, lists of
 *    an id and a flat list of fields. `Delivery.from_reply` takes them without making those lists.
 * 3. `Delivery` is the base of `Message`. It holds its fields as the bytes that Redis sent, copied, so that a message
 *    that waits for a retry keeps no more than itself in memory.
 *
 * The forms in Python are `delivery.py` and hiredis itself; the same tests run on both.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

/* The same as in `compiled.py`; raised in both when what Python calls here changes. */
#define REVISION 2
/* Names of fields repeat: so many are kept as str, each of at most so many bytes. A power of two. */
#define NAMES 512
#define NAME_BYTES_MAX 64
/* What hiredis takes as the length of an array. */
#define ELEMENTS_MAX 4294967295
#define DIGITS_MAX 18
/* A buffer that grew beyond this for a long reply is freed after it. */
#define KEPT_BYTES_MAX (1024 * 1024)
#define KEPT_RECORDS_MAX 4096
/* A buffer is at most this much longer than what is in it. */
#define SPARE_BYTES_MAX (16 * 1024 * 1024)

static struct PyModuleDef module_def;

typedef struct {
    PyTypeObject *delivery_type;
    PyTypeObject *entries_type;
    PyTypeObject *reader_type;
    PyObject *zero;
    PyObject *names[NAMES];
} State;

typedef enum { MALFORMED = -1, INCOMPLETE = 0, COMPLETE = 1 } Found;

/* -- The wire format ---------------------------------------------------------------------------------------------- */

/* Read `<kind><digits>\r\n` and move `at` behind it. */
static Found
read_length(const char **at, const char *end, char kind, Py_ssize_t *length)
{
    const char *p = *at;
    if (p == end) {
        return INCOMPLETE;
    }
    if (*p++ != kind) {
        return MALFORMED;
    }
    const char *digits = p;
    Py_ssize_t value = 0;
    while (p < end && *p >= '0' && *p <= '9') {
        if (p - digits == DIGITS_MAX) {
            return MALFORMED;
        }
        value = value * 10 + (*p++ - '0');
    }
    if (p == end) {
        return INCOMPLETE;
    }
    if (p == digits || (*digits == '0' && p - digits > 1) || *p != '\r') {
        return MALFORMED;
    }
    if (p + 1 == end) {
        return INCOMPLETE;
    }
    if (p[1] != '\n') {
        return MALFORMED;
    }
    *at = p + 2;
    *length = value;
    return COMPLETE;
}

/* Read `$<length>\r\n<text>\r\n` and move `at` behind it. */
static Found
read_text(const char **at, const char *end, const char **text, Py_ssize_t *length)
{
    const char *p = *at;
    Found found = read_length(&p, end, '$', length);
    if (found != COMPLETE) {
        return found;
    }
    if (end - p < 2 || end - p - 2 < *length) {
        return INCOMPLETE;
    }
    if (p[*length] != '\r' || p[*length + 1] != '\n') {
        return MALFORMED;
    }
    *text = p;
    *at = p + *length + 2;
    return COMPLETE;
}

/* Return the texts between `at` and `end`, which `Reader` or `packed` has made, as a list of bytes. */
static PyObject *
texts_of(const char *at, const char *end)
{
    PyObject *list = PyList_New(0);
    const char *text;
    Py_ssize_t length;
    while (list != NULL && at < end) {
        if (read_text(&at, end, &text, &length) != COMPLETE) {
            PyErr_SetString(PyExc_SystemError, "a message's fields are damaged");
            Py_CLEAR(list);
            break;
        }
        PyObject *part = PyBytes_FromStringAndSize(text, length);
        if (part == NULL || PyList_Append(list, part) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(part);
    }
    return list;
}

/* Write `<kind><number>\r\n` and return what is behind it; only count with `at` NULL. */
static char *
put_length(char *at, char kind, Py_ssize_t number, Py_ssize_t *size)
{
    char digits[DIGITS_MAX + 4];
    char *first = digits + sizeof digits;
    do {
        *--first = '0' + number % 10;
        number /= 10;
    } while (number > 0);
    Py_ssize_t length = digits + sizeof digits - first;
    *size += length + 3;
    if (at == NULL) {
        return NULL;
    }
    *at++ = kind;
    memcpy(at, first, length);
    at[length] = '\r';
    at[length + 1] = '\n';
    return at + length + 2;
}

/* Return a sequence of bytes in the wire format; with `kind`, as an array. */
static PyObject *
packed(PyObject *flat, char kind)
{
    PyObject *parts = PySequence_Fast(flat, "flat must be a sequence of bytes");
    if (parts == NULL) {
        return NULL;
    }
    PyObject *made = NULL;
    Py_ssize_t size = 0, count = PySequence_Fast_GET_SIZE(parts);
    if (kind) {
        put_length(NULL, kind, count, &size);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *part = PySequence_Fast_GET_ITEM(parts, i);
        if (!PyBytes_Check(part)) {
            PyErr_Format(PyExc_TypeError, "a field must be bytes, not %.100s", Py_TYPE(part)->tp_name);
            goto done;
        }
        if (PyBytes_GET_SIZE(part) > PY_SSIZE_T_MAX / 2 - size) {
            PyErr_NoMemory();
            goto done;
        }
        put_length(NULL, '$', PyBytes_GET_SIZE(part), &size);
        size += PyBytes_GET_SIZE(part) + 2;
    }
    made = PyBytes_FromStringAndSize(NULL, size);
    if (made == NULL) {
        goto done;
    }
    char *at = PyBytes_AS_STRING(made);
    if (kind) {
        at = put_length(at, kind, count, &size);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *part = PySequence_Fast_GET_ITEM(parts, i);
        Py_ssize_t length = PyBytes_GET_SIZE(part);
        at = put_length(at, '$', length, &size);
        memcpy(at, PyBytes_AS_STRING(part), length);
        at[length] = '\r';
        at[length + 1] = '\n';
        at += length + 2;
    }
done:
    Py_DECREF(parts);
    return made;
}

/* Return a field's name as str, the same object for a name that was met lately. */
static PyObject *
name_of(State *state, const char *text, Py_ssize_t length)
{
    if (length > NAME_BYTES_MAX) {
        return PyUnicode_DecodeUTF8(text, length, NULL);
    }
    uint32_t hash = 2166136261u;
    for (Py_ssize_t i = 0; i < length; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    }
    PyObject **kept = &state->names[(hash ^ (hash >> 16)) % NAMES];
    if (*kept != NULL && PyUnicode_GET_LENGTH(*kept) == length
        && memcmp(PyUnicode_1BYTE_DATA(*kept), text, length) == 0) {
        return Py_NewRef(*kept);
    }
    PyObject *name = PyUnicode_DecodeUTF8(text, length, NULL);
    if (name != NULL && PyUnicode_IS_COMPACT_ASCII(name)) { /* one byte a character: compared above as it is */
        Py_XSETREF(*kept, Py_NewRef(name));
    }
    return name;
}

/* -- Delivery ----------------------------------------------------------------------------------------------------- */

/* The garbage collector does not look into it: it refers to nothing that refers to messages. */
typedef struct {
    PyObject_HEAD
    PyObject *origin;
    PyObject *entry;
    PyObject *failures;
    PyObject *recorded;
    PyObject *id;
    PyObject *fields;
    /* bytes: names and values as Redis sends them, one after the other; NULL: the entry was deleted. */
    PyObject *slice;
} Delivery;

static void
delivery_dealloc(Delivery *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->origin);
    Py_XDECREF(self->entry);
    Py_XDECREF(self->failures);
    Py_XDECREF(self->recorded);
    Py_XDECREF(self->id);
    Py_XDECREF(self->fields);
    Py_XDECREF(self->slice);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
delivery_of(State *state, PyTypeObject *type, PyObject *origin, PyObject *entry, PyObject *slice)
{
    Delivery *self = (Delivery *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->origin = Py_NewRef(origin);
        self->entry = Py_NewRef(entry);
        self->failures = Py_NewRef(state->zero);
        self->recorded = Py_NewRef(Py_False);
        self->id = Py_NewRef(Py_None);
        self->fields = Py_NewRef(Py_None);
        self->slice = Py_XNewRef(slice);
    }
    return (PyObject *)self;
}

static PyObject *
decoded(Delivery *self, State *state)
{
    if (self->slice == NULL) {
        PyErr_SetString(PyExc_TypeError, "a deleted entry has no fields");
        return NULL;
    }
    PyObject *fields = PyDict_New();
    const char *at = PyBytes_AS_STRING(self->slice), *end = at + PyBytes_GET_SIZE(self->slice);
    const char *text;
    Py_ssize_t length;
    while (fields != NULL && at < end) {
        PyObject *name = NULL, *value = NULL;
        if (read_text(&at, end, &text, &length) != COMPLETE || (name = name_of(state, text, length)) == NULL
            || read_text(&at, end, &text, &length) != COMPLETE
            || (value = PyUnicode_DecodeUTF8(text, length, NULL)) == NULL || PyDict_SetItem(fields, name, value) < 0) {
            Py_CLEAR(fields);
        }
        Py_XDECREF(name);
        Py_XDECREF(value);
    }
    if (fields == NULL && !PyErr_Occurred()) { /* a name without a value */
        PyErr_SetString(PyExc_ValueError, "the last field has no value");
    }
    else if (fields == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        PyObject *error = PyObject_CallMethod((PyObject *)self, "_not_utf8", NULL);
        if (error != NULL) {
            PyErr_SetObject((PyObject *)Py_TYPE(error), error);
            Py_DECREF(error);
        }
    }
    return fields;
}

static PyObject *
delivery_read_fields(PyObject *self, PyTypeObject *type, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count > 0 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "read_fields() takes no arguments");
        return NULL;
    }
    return decoded((Delivery *)self, PyType_GetModuleState(type));
}

static PyObject *
delivery_get_fields(Delivery *self, void *Py_UNUSED(closure))
{
    if (self->fields == NULL || self->fields == Py_None) {
        PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &module_def);
        PyObject *fields = module == NULL ? NULL : decoded(self, PyModule_GetState(module));
        if (fields == NULL) {
            return NULL;
        }
        Py_XSETREF(self->fields, fields);
    }
    return Py_NewRef(self->fields);
}

static PyObject *
delivery_get_flat(Delivery *self, void *Py_UNUSED(closure))
{
    if (self->slice == NULL) {
        Py_RETURN_NONE;
    }
    const char *at = PyBytes_AS_STRING(self->slice);
    return texts_of(at, at + PyBytes_GET_SIZE(self->slice));
}

/* Return the value of the first field with that name; None when there is none. */
static PyObject *
delivery_value_of(Delivery *self, PyObject *name)
{
    if (!PyBytes_Check(name)) {
        return PyErr_Format(PyExc_TypeError, "a field's name must be bytes, not %.100s", Py_TYPE(name)->tp_name);
    }
    if (self->slice == NULL) {
        Py_RETURN_NONE;
    }
    const char *at = PyBytes_AS_STRING(self->slice), *end = at + PyBytes_GET_SIZE(self->slice);
    const char *text, *value;
    Py_ssize_t length, value_length;
    while (read_text(&at, end, &text, &length) == COMPLETE && read_text(&at, end, &value, &value_length) == COMPLETE) {
        if (length == PyBytes_GET_SIZE(name) && memcmp(text, PyBytes_AS_STRING(name), length) == 0) {
            return PyBytes_FromStringAndSize(value, value_length);
        }
    }
    Py_RETURN_NONE;
}

static int
delivery_set_flat(Delivery *self, PyObject *flat, void *Py_UNUSED(closure))
{
    PyObject *slice = NULL;
    if (flat == NULL) {
        PyErr_SetString(PyExc_AttributeError, "flat can't be deleted");
        return -1;
    }
    if (flat != Py_None && (slice = packed(flat, 0)) == NULL) {
        return -1;
    }
    Py_XSETREF(self->slice, slice);
    return 0;
}

/* -- Entries ------------------------------------------------------------------------------------------------------ */

/* Where an entry is, counted from the beginning of the reply. */
typedef struct {
    Py_ssize_t id;
    Py_ssize_t id_length;
    Py_ssize_t fields;
    /* -1: the entry was deleted. */
    Py_ssize_t fields_length;
} Record;

typedef struct {
    PyObject_HEAD
    /* bytes: the reply, and where it begins in there. */
    PyObject *data;
    const char *reply;
    Record *records;
    Py_ssize_t count;
} Entries;

static void
entries_dealloc(Entries *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->data);
    PyMem_Free(self->records);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
entries_of(State *state, PyObject *data, const char *reply, const Record *records, Py_ssize_t count)
{
    Entries *self = (Entries *)state->entries_type->tp_alloc(state->entries_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->data = Py_NewRef(data);
    self->reply = reply;
    self->records = PyMem_New(Record, count ? count : 1);
    if (self->records == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (count > 0) {
        memcpy(self->records, records, count * sizeof(Record));
    }
    self->count = count;
    return (PyObject *)self;
}

static Py_ssize_t
entries_length(Entries *self)
{
    return self->count;
}

static PyObject *
entries_item(Entries *self, Py_ssize_t index)
{
    if (index < 0 || index >= self->count) {
        PyErr_SetString(PyExc_IndexError, "no such entry");
        return NULL;
    }
    const Record *record = &self->records[index];
    const char *fields = self->reply + record->fields;
    PyObject *flat = record->fields_length < 0 ? Py_NewRef(Py_None) : texts_of(fields, fields + record->fields_length);
    PyObject *id = PyBytes_FromStringAndSize(self->reply + record->id, record->id_length);
    PyObject *pair = PyList_New(2);
    if (pair == NULL || id == NULL || flat == NULL) {
        Py_XDECREF(pair);
        Py_XDECREF(id);
        Py_XDECREF(flat);
        return NULL;
    }
    PyList_SET_ITEM(pair, 0, id);
    PyList_SET_ITEM(pair, 1, flat);
    return pair;
}

/* Return the messages of Entries; of any other iterable of pairs, too. */
static PyObject *
delivery_from_reply(PyObject *type, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "from_reply() takes an origin and entries (%zd given)", count);
    }
    PyObject *module = PyType_GetModuleByDef((PyTypeObject *)type, &module_def);
    if (module == NULL) {
        return NULL;
    }
    State *state = PyModule_GetState(module);
    int is_read = Py_IS_TYPE(args[1], state->entries_type);
    PyObject *pairs = is_read ? Py_NewRef(args[1]) : PySequence_Fast(args[1], "entries must be iterable");
    if (pairs == NULL) {
        return NULL;
    }
    Py_ssize_t size = is_read ? ((Entries *)pairs)->count : PySequence_Fast_GET_SIZE(pairs);
    PyObject *messages = PyList_New(size);
    for (Py_ssize_t i = 0; messages != NULL && i < size; i++) {
        PyObject *entry = NULL, *slice = NULL, *message = NULL, *pair = NULL;
        if (is_read) {
            Entries *entries = (Entries *)pairs;
            const Record *record = &entries->records[i];
            entry = PyBytes_FromStringAndSize(entries->reply + record->id, record->id_length);
            if (record->fields_length >= 0) {
                slice = PyBytes_FromStringAndSize(entries->reply + record->fields, record->fields_length);
            }
        }
        else if ((pair = PySequence_Fast(PySequence_Fast_GET_ITEM(pairs, i), "an entry must be a pair")) != NULL) {
            if (PySequence_Fast_GET_SIZE(pair) != 2) {
                PyErr_SetString(PyExc_ValueError, "an entry must be a pair of an id and its fields");
            }
            else {
                entry = Py_NewRef(PySequence_Fast_GET_ITEM(pair, 0));
                PyObject *flat = PySequence_Fast_GET_ITEM(pair, 1);
                slice = flat == Py_None ? NULL : packed(flat, 0);
            }
        }
        if (entry != NULL && !PyErr_Occurred()) {
            message = delivery_of(state, (PyTypeObject *)type, args[0], entry, slice);
        }
        Py_XDECREF(entry);
        Py_XDECREF(slice);
        Py_XDECREF(pair);
        if (message == NULL) {
            Py_CLEAR(messages);
        }
        else {
            PyList_SET_ITEM(messages, i, message);
        }
    }
    Py_DECREF(pairs);
    return messages;
}

/* -- Reader ------------------------------------------------------------------------------------------------------- */

/* What is expected next. */
typedef enum { AT_REPLY, AT_STREAM, AT_KEY, AT_ENTRIES, AT_ENTRY, AT_ID, AT_FIELDS, AT_FIELD } Step;

typedef struct {
    Py_ssize_t key;
    Py_ssize_t key_length;
    Py_ssize_t first;
    Py_ssize_t count;
} Stream;

typedef struct {
    PyObject_HEAD
    /* A hiredis.Reader, and what it returns when a reply is not complete. */
    PyObject *hiredis;
    PyObject *nothing;
    /* hiredis has a part of a reply: it gets everything, until nothing is left there. */
    int passing;
    /* What was fed: one object of bytes, used in place, or a copy in `buffer`. */
    PyObject *chunk;
    char *buffer;
    Py_ssize_t capacity;
    /* The reply's beginning, what was looked at, and the end of what was fed. */
    Py_ssize_t start;
    Py_ssize_t at;
    Py_ssize_t end;
    /* How far the reply was read. */
    Step step;
    Py_ssize_t streams_left;
    Py_ssize_t entries_left;
    Py_ssize_t texts_left;
    Stream *streams;
    Py_ssize_t stream_count;
    Py_ssize_t stream_capacity;
    Record *records;
    Py_ssize_t record_count;
    Py_ssize_t record_capacity;
} Reader;

static int
reader_traverse(Reader *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->hiredis);
    Py_VISIT(self->nothing);
    return 0;
}

static int
reader_clear(Reader *self)
{
    Py_CLEAR(self->hiredis);
    Py_CLEAR(self->nothing);
    return 0;
}

static void
reader_dealloc(Reader *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    reader_clear(self);
    Py_XDECREF(self->chunk);
    PyMem_Free(self->buffer);
    PyMem_Free(self->streams);
    PyMem_Free(self->records);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *hiredis;
    static char *names[] = {"hiredis", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Reader", names, &hiredis)) {
        return NULL;
    }
    PyObject *nothing = PyObject_CallMethod(hiredis, "gets", NULL);
    if (nothing == NULL) {
        return NULL;
    }
    Reader *self = (Reader *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_DECREF(nothing);
        return NULL;
    }
    self->hiredis = Py_NewRef(hiredis);
    self->nothing = nothing;
    return (PyObject *)self;
}

static const char *
reader_data(Reader *self)
{
    return self->chunk != NULL ? PyBytes_AS_STRING(self->chunk) : self->buffer;
}

/* Make room for one more element of an array. */
static int
grow(void **array, Py_ssize_t count, Py_ssize_t *capacity, size_t size)
{
    if (count < *capacity) {
        return 0;
    }
    Py_ssize_t wanted = *capacity ? *capacity * 2 : 128;
    void *grown = PyMem_Realloc(*array, wanted * size);
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *array = grown;
    *capacity = wanted;
    return 0;
}

/* Forget the replies that were read, and everything with `all`. */
static void
reader_forget(Reader *self, int all)
{
    self->step = AT_REPLY;
    self->stream_count = self->record_count = 0;
    self->start = self->at;
    if (all || self->start == self->end) {
        self->start = self->at = self->end = 0;
        Py_CLEAR(self->chunk);
        if (self->capacity > KEPT_BYTES_MAX) {
            PyMem_Free(self->buffer);
            self->buffer = NULL;
            self->capacity = 0;
        }
    }
    if (self->record_capacity > KEPT_RECORDS_MAX) {
        PyMem_Free(self->records);
        self->records = NULL;
        self->record_capacity = 0;
    }
}

/* Add bytes behind those that are there. */
static int
reader_append(Reader *self, const char *data, Py_ssize_t length)
{
    Py_ssize_t size = self->end - self->start;
    if (length > PY_SSIZE_T_MAX / 4 - size) {
        PyErr_NoMemory();
        return -1;
    }
    if (self->chunk == NULL && self->start > 0) {
        memmove(self->buffer, self->buffer + self->start, size);
        self->at -= self->start;
        self->start = 0;
        self->end = size;
    }
    if (size + length > self->capacity) {
        Py_ssize_t capacity = size + length + Py_MIN(size + length, SPARE_BYTES_MAX);
        char *buffer = PyMem_Realloc(self->buffer, capacity);
        if (buffer == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->buffer = buffer;
        self->capacity = capacity;
    }
    if (self->chunk != NULL) {
        memcpy(self->buffer, PyBytes_AS_STRING(self->chunk) + self->start, size);
        Py_CLEAR(self->chunk);
        self->at -= self->start;
        self->start = 0;
    }
    memcpy(self->buffer + size, data, length);
    self->end = size + length;
    return 0;
}

static PyObject *
reader_feed(Reader *self, PyObject *data)
{
    if (self->passing) {
        return PyObject_CallMethod(self->hiredis, "feed", "O", data);
    }
    if (self->start == self->end && PyBytes_CheckExact(data)) {
        Py_XSETREF(self->chunk, Py_NewRef(data));
        self->start = self->at = 0;
        self->end = PyBytes_GET_SIZE(data);
        Py_RETURN_NONE;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    int result = reader_append(self, view.buf, view.len);
    PyBuffer_Release(&view);
    if (result < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static Found
begin_stream(Reader *self, Py_ssize_t key, Py_ssize_t length)
{
    if (grow((void **)&self->streams, self->stream_count, &self->stream_capacity, sizeof(Stream)) < 0) {
        return MALFORMED;
    }
    self->streams[self->stream_count++] = (Stream){key, length, self->record_count, 0};
    self->step = AT_ENTRIES;
    return COMPLETE;
}

static Found
begin_entry(Reader *self, Py_ssize_t id, Py_ssize_t length)
{
    if (grow((void **)&self->records, self->record_count, &self->record_capacity, sizeof(Record)) < 0) {
        return MALFORMED;
    }
    self->records[self->record_count++] = (Record){id, length, 0, -1};
    self->step = AT_FIELDS;
    return COMPLETE;
}

/* What follows an entry whose last byte was read. COMPLETE: nothing, so that the reply is complete. */
static Found
after_entry(Reader *self)
{
    if (self->entries_left > 0) {
        self->entries_left--;
        self->step = AT_ENTRY;
        return INCOMPLETE;
    }
    Stream *stream = &self->streams[self->stream_count - 1];
    stream->count = self->record_count - stream->first;
    if (self->streams_left > 0) {
        self->streams_left--;
        self->step = AT_STREAM;
        return INCOMPLETE;
    }
    return COMPLETE;
}

/* Go on with the reply as far as it was fed. MALFORMED: it is another kind of reply, or there is an error. */
static Found
reader_scan(Reader *self)
{
    const char *data = reader_data(self), *reply = data + self->start;
    const char *at = data + self->at, *end = data + self->end, *text;
    Py_ssize_t length;
    Found found;
    for (;;) {
        self->at = at - data;
        Step step = self->step;
        if (step == AT_KEY || step == AT_ID || step == AT_FIELD) {
            found = read_text(&at, end, &text, &length);
        }
        else if (step == AT_FIELDS && end - at >= 2 && at[1] == '-') { /* *-1 */
            if (end - at < 5) {
                return memcmp(at, "*-1\r\n", end - at) == 0 ? INCOMPLETE : MALFORMED;
            }
            found = memcmp(at, "*-1\r\n", 5) == 0 ? COMPLETE : MALFORMED;
            at += 5;
            length = -1;
        }
        else {
            found = read_length(&at, end, '*', &length);
            if (found == COMPLETE && length > ELEMENTS_MAX) {
                return MALFORMED;
            }
        }
        if (found != COMPLETE) {
            return found;
        }
        int ended = 0;
        switch (step) {
        case AT_REPLY:
            found = length > 0 ? COMPLETE : MALFORMED;
            self->streams_left = length - 1;
            self->step = AT_STREAM;
            break;
        case AT_STREAM:
            found = length == 2 ? COMPLETE : MALFORMED;
            self->step = AT_KEY;
            break;
        case AT_KEY:
            found = begin_stream(self, text - reply, length);
            break;
        case AT_ENTRIES:
            self->entries_left = length;
            ended = 1;
            break;
        case AT_ENTRY:
            found = length == 2 ? COMPLETE : MALFORMED;
            self->step = AT_ID;
            break;
        case AT_ID:
            found = begin_entry(self, text - reply, length);
            break;
        case AT_FIELDS:
            if (length < 0) {
                ended = 1;
                break;
            }
            if (length % 2) {
                return MALFORMED;
            }
            self->records[self->record_count - 1].fields = at - reply;
            self->records[self->record_count - 1].fields_length = 0;
            self->texts_left = length;
            self->step = AT_FIELD;
            ended = length == 0;
            break;
        case AT_FIELD:
            if (--self->texts_left == 0) {
                Record *record = &self->records[self->record_count - 1];
                record->fields_length = at - reply - record->fields;
                ended = 1;
            }
            break;
        }
        if (found != COMPLETE) {
            return found;
        }
        if (ended && after_entry(self) == COMPLETE) {
            self->at = at - data;
            return COMPLETE;
        }
    }
}

/* Return the complete reply: `[[key, Entries], ...]`. */
static PyObject *
reader_take(Reader *self, State *state)
{
    const char *reply = reader_data(self) + self->start;
    PyObject *data;
    if (self->chunk != NULL) {
        data = Py_NewRef(self->chunk);
    }
    else if ((data = PyBytes_FromStringAndSize(reply, self->at - self->start)) != NULL) {
        reply = PyBytes_AS_STRING(data);
    }
    PyObject *streams = data == NULL ? NULL : PyList_New(self->stream_count);
    for (Py_ssize_t i = 0; streams != NULL && i < self->stream_count; i++) {
        const Stream *stream = &self->streams[i];
        const Record *records = self->records == NULL ? NULL : self->records + stream->first;
        PyObject *key = PyBytes_FromStringAndSize(reply + stream->key, stream->key_length);
        PyObject *entries = key == NULL ? NULL : entries_of(state, data, reply, records, stream->count);
        PyObject *pair = entries == NULL ? NULL : PyList_New(2);
        if (pair == NULL) {
            Py_XDECREF(key);
            Py_XDECREF(entries);
            Py_CLEAR(streams);
            break;
        }
        PyList_SET_ITEM(pair, 0, key);
        PyList_SET_ITEM(pair, 1, entries);
        PyList_SET_ITEM(streams, i, pair);
    }
    Py_XDECREF(data);
    if (streams != NULL) {
        reader_forget(self, 0);
    }
    return streams;
}

/* Return hiredis's next reply. */
static PyObject *
reader_pass(Reader *self, PyObject *const *args, Py_ssize_t count)
{
    PyObject *reply = count > 0 ? PyObject_CallMethod(self->hiredis, "gets", "O", args[0])
                                : PyObject_CallMethod(self->hiredis, "gets", NULL);
    if (reply == NULL || reply == self->nothing) {
        return reply;
    }
    PyObject *more = PyObject_CallMethod(self->hiredis, "has_data", NULL);
    int is_more = more == NULL ? -1 : PyObject_IsTrue(more);
    Py_XDECREF(more);
    if (is_more < 0) {
        Py_DECREF(reply);
        return NULL;
    }
    self->passing = is_more;
    return reply;
}

static PyObject *
reader_gets(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Reader *self = (Reader *)object;
    if (count > 1 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "gets() takes at most one argument, by position");
        return NULL;
    }
    if (!self->passing) {
        if (self->start == self->end) {
            return Py_NewRef(self->nothing);
        }
        Found found = reader_scan(self);
        if (found == INCOMPLETE) {
            return Py_NewRef(self->nothing);
        }
        if (found == COMPLETE) {
            return reader_take(self, PyType_GetModuleState(type));
        }
        if (PyErr_Occurred()) {
            return NULL;
        }
        PyObject *fed =
            PyObject_CallMethod(self->hiredis, "feed", "y#", reader_data(self) + self->start, self->end - self->start);
        if (fed == NULL) {
            return NULL;
        }
        Py_DECREF(fed);
        self->passing = 1;
        reader_forget(self, 1);
    }
    return reader_pass(self, args, count);
}

static PyObject *
reader_has_data(Reader *self, PyObject *Py_UNUSED(ignored))
{
    if (self->passing) {
        return PyObject_CallMethod(self->hiredis, "has_data", NULL);
    }
    return PyBool_FromLong(self->end > self->start);
}

/* -- Commands ----------------------------------------------------------------------------------------------------- */

/* Return a command of bytes, str and whatever else has a str, as the server takes it. */
static PyObject *
pack_command(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *given = PySequence_Fast(arguments, "a command must be a sequence");
    if (given == NULL) {
        return NULL;
    }
    Py_ssize_t count = PySequence_Fast_GET_SIZE(given);
    PyObject *parts = PyTuple_New(count);
    for (Py_ssize_t i = 0; parts != NULL && i < count; i++) {
        PyObject *part = PySequence_Fast_GET_ITEM(given, i);
        if (PyBytes_Check(part)) {
            Py_INCREF(part);
        }
        else {
            PyObject *text = PyObject_Str(part);
            part = text == NULL ? NULL : PyUnicode_AsUTF8String(text);
            Py_XDECREF(text);
        }
        if (part == NULL) {
            Py_CLEAR(parts);
        }
        else {
            PyTuple_SET_ITEM(parts, i, part);
        }
    }
    Py_DECREF(given);
    PyObject *command = parts == NULL ? NULL : packed(parts, '*');
    Py_XDECREF(parts);
    return command;
}

static PyMethodDef module_methods[] = {
    {"pack_command", pack_command, METH_O, "Return a command in Redis's wire format."},
    {NULL},
};

/* -- The module --------------------------------------------------------------------------------------------------- */

static PyMemberDef delivery_members[] = {
    {"origin", T_OBJECT_EX, offsetof(Delivery, origin), 0, "Where it comes from."},
    {"entry", T_OBJECT_EX, offsetof(Delivery, entry), 0, "The id of the entry that is acked."},
    {"failures", T_OBJECT_EX, offsetof(Delivery, failures), 0, "Attempts that failed before this one."},
    {"recorded", T_OBJECT_EX, offsetof(Delivery, recorded), 0, "Redis keeps a record that the ack must remove."},
    {"_id", T_OBJECT_EX, offsetof(Delivery, id), 0, NULL},
    {"_fields", T_OBJECT_EX, offsetof(Delivery, fields), 0, NULL},
    {NULL},
};

static PyGetSetDef delivery_getset[] = {
    {"fields", (getter)delivery_get_fields, NULL, "The entry's fields.", NULL},
    {"flat", (getter)delivery_get_flat, (setter)delivery_set_flat, "Names and values as Redis sends them.", NULL},
    {NULL},
};

static PyMethodDef delivery_methods[] = {
    {"from_reply", (PyCFunction)(void (*)(void))delivery_from_reply, METH_FASTCALL | METH_CLASS,
     "Make a message of each entry of a reply."},
    {"read_fields", (PyCFunction)(void (*)(void))delivery_read_fields, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Return the fields decoded anew."},
    {"value_of", (PyCFunction)delivery_value_of, METH_O, "Return the value of a field as bytes, or None."},
    {NULL},
};

static PyType_Slot delivery_slots[] = {
    {Py_tp_doc, "The base of Message."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, delivery_dealloc},
    {Py_tp_members, delivery_members},
    {Py_tp_getset, delivery_getset},
    {Py_tp_methods, delivery_methods},
    {0, NULL},
};

static PyType_Spec delivery_spec = {
    "supervisor._entries.Delivery", sizeof(Delivery), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, delivery_slots,
};

static PyType_Slot entries_slots[] = {
    {Py_tp_doc, "One stream's entries in a reply; a sequence of [id, flat]."},
    {Py_tp_dealloc, entries_dealloc},
    {Py_sq_length, entries_length},
    {Py_sq_item, entries_item},
    {0, NULL},
};

static PyType_Spec entries_spec = {
    "supervisor._entries.Entries", sizeof(Entries), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    entries_slots,
};

static PyMethodDef reader_methods[] = {
    {"feed", (PyCFunction)reader_feed, METH_O, "Add bytes that were received."},
    {"gets", (PyCFunction)(void (*)(void))reader_gets, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Return the next reply, or what hiredis returns when it is not complete."},
    {"has_data", (PyCFunction)reader_has_data, METH_NOARGS, "Return whether bytes are left."},
    {NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "Reader(hiredis): reads XREADGROUP's replies itself and leaves all others to a hiredis.Reader."},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_clear, reader_clear},
    {Py_tp_methods, reader_methods},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    "supervisor._entries.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, reader_slots,
};

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->zero = PyLong_FromLong(0);
    state->delivery_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &delivery_spec, NULL);
    state->entries_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &entries_spec, NULL);
    state->reader_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    if (state->zero == NULL || state->delivery_type == NULL || state->entries_type == NULL
        || state->reader_type == NULL) {
        return -1;
    }
    if (PyModule_AddType(module, state->delivery_type) < 0 || PyModule_AddType(module, state->entries_type) < 0) {
        return -1;
    }
    if (PyModule_AddType(module, state->reader_type) < 0) {
        return -1;
    }
    return PyModule_AddIntConstant(module, "REVISION", REVISION);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->delivery_type);
    Py_VISIT(state->entries_type);
    Py_VISIT(state->reader_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->delivery_type);
    Py_CLEAR(state->entries_type);
    Py_CLEAR(state->reader_type);
    Py_CLEAR(state->zero);
    for (int i = 0; i < NAMES; i++) {
        Py_CLEAR(state->names[i]);
    }
    return 0;
}

static void
module_free(void *module)
{
    module_clear((PyObject *)module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "supervisor._entries",
    .m_doc = "Reads XREADGROUP's replies and keeps messages without an object for each field.",
    .m_size = sizeof(State),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__entries(void)
{
    return PyModuleDef_Init(&module_def);
}
